"""Stopping a training run: SIGTERM or Ctrl-C sets an event, which is checked at the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from core.errors import RunError

DECIDES_NOTHING = "when a run is interrupted; resumed, it computes the same numbers"


class Stopped(RunError):
    """The run was asked to stop; its state is in a checkpoint."""


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets. A second signal has its usual effect. Main thread only; else never set."""
    requested = threading.Event()
    before: dict[signal.Signals, signal._HANDLER] = {}

    def ask(number: int, _frame: FrameType | None) -> None:
        requested.set()
        signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
