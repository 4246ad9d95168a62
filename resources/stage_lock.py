"""One writer a stage: a lock that says who holds it and that ends with its holder, however that died.

A POSIX lock (fcntl): the kernel frees it when its process ends, even by SIGKILL, and children do not inherit it.
Threads of one process exclude each other by a lock of their own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

POLL_SECONDS = 0.2  # how often a waiting process asks for the lock again
REMIND_SECONDS = 30.0  # how often it says that it still waits

_thread_locks: dict[str, threading.Lock] = {}
_thread_locks_guard = threading.Lock()


class WorkspaceError(RuntimeError):
    """A sentence for the user: what, where, and the way out."""


@contextlib.contextmanager
def hold(
    path: Path, stage: str, say: Callable[[str], None] | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Hold the lock file of a stage alone, waiting for whoever holds it and saying who (`say`, default stderr).

    Not re-entrant. After `timeout` seconds (default: never) a WorkspaceError names the holder.
    """
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    with _thread_locks_guard:
        thread_lock = _thread_locks.setdefault(str(path), threading.Lock())
    waiting = _Waiting(stage, say, timeout)
    while not thread_lock.acquire(timeout=POLL_SECONDS):
        waiting.tell(f"another thread of this process (pid {os.getpid()})")
    try:
        # Only one handle of a process at a time: closing any other would free the lock (see fcntl(2)).
        with open(path, "a+", encoding="utf-8") as file:
            while not _try_lock(file):
                waiting.tell(_holder(file))
                time.sleep(POLL_SECONDS)
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "since": time.time()}))
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)
    finally:
        thread_lock.release()


class _Waiting:
    """Says once, and then now and again, who is being waited for."""

    def __init__(self, stage: str, say: Callable[[str], None], timeout: float | None):
        self.stage, self.say, self.timeout = stage, say, timeout
        self.start, self.next = time.monotonic(), 0.0

    def tell(self, holder: str) -> None:
        waited = time.monotonic() - self.start
        if self.timeout is not None and waited >= self.timeout:
            raise WorkspaceError(
                f"{self.stage} is being made by {holder}; waited {waited:.0f} s. Try again when it is done."
            )
        if waited >= self.next:
            self.say(f"{self.stage}: waiting for {holder}, which is making it.")
            self.next = waited + REMIND_SECONDS


def _try_lock(file: io.TextIOBase) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _holder(file: io.TextIOBase) -> str:
    """Who holds the lock, from what the holder wrote into it (through our own handle: see fcntl(2))."""
    file.seek(0)
    try:
        held = json.loads(file.read())
        since = datetime.fromtimestamp(held["since"], UTC).astimezone()
        return f"process {held['pid']} (since {since:%H:%M:%S})"
    except (ValueError, KeyError, TypeError):  # being written just now
        return "another process"
