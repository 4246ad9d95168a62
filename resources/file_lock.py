"""An exclusive lock on a file, between processes and between threads of one process.

Between processes it is a POSIX lock (fcntl): the kernel frees it when its process ends, even by SIGKILL, and children
do not inherit it. The package `filelock` uses flock(2) instead, which a forked child keeps after its parent was killed.
A POSIX lock belongs to the process, and closing any handle of the file frees it: a table of the paths that this
process holds keeps its threads apart and allows one handle at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

POLL_SECONDS = 0.2  # between two attempts; a release in this process is noticed at once

_held: set[str] = set()  # paths that this process holds or is trying for
_released = threading.Condition()


class FileLock:
    """One use of a lock file. Not re-entrant; one thread may acquire it and another release it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.holder = "another process"  # who had it when an attempt failed
        self._file: io.FileIO | None = None

    def __enter__(self) -> FileLock:
        while not self.acquire(wait=60.0):
            pass
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, wait: float = 0.0) -> bool:
        """Whether we have the lock now, after at most `wait` seconds; `holder` says who has it if not.

        Makes the file if it is missing. Raises OSError, such as FileNotFoundError if its folder is missing.
        """
        deadline = time.monotonic() + wait
        while not self._try():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with _released:
                _released.wait(min(left, POLL_SECONDS))
        return True

    def release(self) -> None:
        """Give the lock back; does nothing if we do not have it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
            self._close(self._file)
            self._file = None

    def _try(self) -> bool:
        with _released:
            if str(self.path) in _held:
                self.holder = f"another thread of this process (pid {os.getpid()})"
                return False
            _held.add(str(self.path))
        file = None
        try:
            file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (held open as long as the lock)
            if _lock(file):
                with contextlib.suppress(OSError):  # a full disk must not stop who only wants the lock
                    file.truncate(0)
                    file.write(json.dumps({"pid": os.getpid(), "since": time.time()}).encode())
                self._file = file
                return True
            self.holder = _read_holder(file)
            return False
        finally:
            if self._file is None:
                self._close(file)

    def _close(self, file: io.FileIO | None) -> None:
        if file is not None:
            file.close()
        with _released:
            _held.discard(str(self.path))
            _released.notify_all()


def _lock(file: io.FileIO) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _read_holder(file: io.FileIO) -> str:
    """Who holds the lock, from what the holder wrote into the file."""
    file.seek(0)
    try:
        held = json.loads(file.read())
        since = datetime.fromtimestamp(held["since"], UTC).astimezone()
        return f"process {held['pid']} (since {since:%H:%M:%S})"
    except (ValueError, KeyError, TypeError):  # being written just now
        return "another process"
