"""Limits on what one record may cost: one that costs more is one failed row of the ledger, and its unit goes on.

A page is limited in processor time (RLIMIT_CPU; not wall-clock time, which would fail pages because the machine is
busy) and in new memory (RLIMIT_DATA above what the process holds when the page begins). The parser then raises, or
dies with its process: a file has the number of the record in process, and the next worker skips that one. A page whose
parser dies by itself fails at once. A SIGKILL or SIGTERM is retried once, because people and the kernel send those
too. Reading and decompression need no such limits: they are bounded in bytes (corpus/http.py, corpus/stream.py), so a
record is never blamed for the one behind it.
"""

import contextlib
import json
import math
import os
import re
import resource
import signal
import time
from pathlib import Path
from typing import Any

from core.files import write_atomically

PAGE = resource.getpagesize()
# Signal that ended a worker -> rule by which its record fails. C++ and Rust call abort() when an allocation fails.
BY_SIGNAL: dict[int, str] = {
    signal.SIGXCPU: "cpu_time",
    signal.SIGABRT: "memory",
    signal.SIGSEGV: "parser_crash",
    signal.SIGBUS: "parser_crash",
    signal.SIGFPE: "parser_crash",
    signal.SIGILL: "parser_crash",
}
RETRIED = "once"
DETAILS = {
    "cpu_time": "the page used up its processor time",
    "memory": "the page used up its memory",
    "parser_crash": "the page killed the parser",
}
HIGH_WATER = re.compile(rb"VmHWM:\s+(\d+) kB")


def at_file(folder: Path) -> Path:
    """The file with the number of the record that is being judged, blank between records."""
    return folder.with_name(folder.name + ".at")


def crash_file(folder: Path) -> Path:
    """The file of the unit's records that killed a worker: {number: rule, or "once"}."""
    return folder.with_name(folder.name + ".crashes.json")


def note_death(task: Any, exit_code: int) -> bool:
    """Called by the engine when a worker died on a UnitTask. True where the record it was at fails now."""
    place = at_file(task.folder)
    at = place.read_text().strip() if place.is_file() else ""
    if not at:
        return False
    crashes = read_crashes(task.folder)
    killed = BY_SIGNAL.get(-exit_code)
    # The kernel sends SIGKILL when memory is short.
    again = "memory" if exit_code == -signal.SIGKILL else "parser_crash"
    crashes[at] = killed or (again if at in crashes else RETRIED)
    write_atomically(crash_file(task.folder), json.dumps(crashes))
    return crashes[at] != RETRIED


def read_crashes(folder: Path) -> dict[str, str]:
    """The crashes that note_death wrote."""
    file = crash_file(folder)
    return json.loads(file.read_text()) if file.is_file() else {}


class Watch:
    """Writes to disk which of a unit's records is being judged, and limits what it may use.

    `limited`: whether to set the limits (off where the unit runs in the caller's own process).
    """

    def __init__(self, folder: Path, cpu_seconds: int, memory_mb: int, limited: bool):
        self.cpu_seconds, self.memory, self.limited = cpu_seconds, memory_mb << 20, limited
        self._given_up = read_crashes(folder)
        self._at = os.open(at_file(folder), os.O_WRONLY | os.O_CREAT, 0o644)
        self._statm = _open("/proc/self/statm", os.O_RDONLY)
        self._clear = _open("/proc/self/clear_refs", os.O_WRONLY)
        self._resident = 0

    def given_up(self, number: int) -> str | None:
        """The rule by which this record failed in an earlier worker, if it did."""
        rule = self._given_up.get(str(number))
        return None if rule == RETRIED else rule

    def begin(self, number: int) -> None:
        """Start of a record: until end(), its limits hold and a crash is counted against it."""
        os.pwrite(self._at, f"{number:<12}".encode(), 0)
        if not self.limited:
            return
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + self.cpu_seconds)
        if self._statm is not None:
            fields = os.pread(self._statm, 128, 0).split()  # proc(5): size resident shared text lib data dt
            self._resident = int(fields[1]) * PAGE
            _limit(resource.RLIMIT_DATA, int(fields[5]) * PAGE + self.memory)
        if self._clear is not None:
            os.pwrite(self._clear, b"5", 0)  # resets the high-water mark

    def end(self) -> None:
        """End of a record."""
        os.pwrite(self._at, b" " * 12, 0)
        if self.limited:
            _limit(resource.RLIMIT_CPU, None)
            _limit(resource.RLIMIT_DATA, None)

    def exhausted(self) -> bool:
        """Whether the record used half of its memory or more, so that its parser's error is attributed to that.

        Half: what doubles when it is full (vectors, hash tables) fails there.
        """
        if not self.limited or self._statm is None or self._clear is None:
            return False
        found = HIGH_WATER.search(Path("/proc/self/status").read_bytes())
        return found is not None and int(found[1]) * 1024 - self._resident >= self.memory // 2

    def close(self) -> None:
        """Remove the limits; close the files."""
        self.end()
        for handle in (self._at, self._statm, self._clear):
            if handle is not None:
                os.close(handle)


def _open(path: str, flags: int) -> int | None:
    with contextlib.suppress(OSError):  # not Linux, or hidden: memory is then not limited
        return os.open(path, flags)
    return None


def _limit(kind: int, value: int | None) -> None:
    """Set a soft limit of this process; None raises it to the hard limit."""
    _, hard = resource.getrlimit(kind)
    with contextlib.suppress(ValueError):  # a hard limit below ours is stricter
        resource.setrlimit(kind, (hard if value is None else value, hard))
