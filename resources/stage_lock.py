"""One writer per stage: a lock that says who holds it, and that ends with its holder however that died."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from core.errors import WorkspaceError
from resources.file_lock import POLL_SECONDS, FileLock

REMIND_SECONDS = 30.0  # between two messages that we still wait


@contextlib.contextmanager
def hold(
    path: Path, stage: str, log: Callable[[str], object] | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Hold the lock file of a stage, waiting for whoever holds it and naming them (`log`, default stderr).

    Not re-entrant. After `timeout` seconds (default: never) a WorkspaceError names the holder.
    """
    log = log or (lambda text: print(text, file=sys.stderr, flush=True))
    lock = FileLock(path)
    started, next_message = time.monotonic(), 0.0
    while not lock.acquire(wait=POLL_SECONDS):
        waited = time.monotonic() - started
        if timeout is not None and waited >= timeout:
            raise WorkspaceError(
                f"{stage} is being made by {lock.holder}; waited {waited:.0f} s. Try again when it is done."
            )
        if waited >= next_message:
            log(f"{stage}: waiting for {lock.holder}, which is making it.")
            next_message = waited + REMIND_SECONDS
    try:
        yield
    finally:
        lock.release()
