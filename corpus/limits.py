"""What one record may cost, and what becomes of one that costs more: one failed row, and never its unit.

A page is held to processor time (RLIMIT_CPU; not wall-clock time, which would fail pages because the machine is
busy) and to new memory (RLIMIT_DATA over what the process holds when the page begins). The parser then raises, or
dies and takes its process along: a file says which record it stood at, and the next process steps over that one.
A page that kills by itself is given up at once. A SIGKILL or SIGTERM is forgiven once, because people and the
kernel send those too. Reading and unpacking need no such limits: they are bounded in bytes (corpus/http.py,
corpus/stream.py), so a record is never blamed for the one behind it.
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

PAGE = resource.getpagesize()
# How a process died -> the rule by which its record is given up. An allocation that fails ends C++ and Rust by abort().
BY_ITSELF = {
    signal.SIGXCPU: "cpu_time",
    signal.SIGABRT: "memory",
    signal.SIGSEGV: "parser_crash",
    signal.SIGBUS: "parser_crash",
    signal.SIGFPE: "parser_crash",
    signal.SIGILL: "parser_crash",
}
FORGIVEN = "once"
DETAILS = {
    "cpu_time": "the page used up its processor time",
    "memory": "the page used up its memory",
    "parser_crash": "the page killed the parser",
}
HIGH_WATER = re.compile(rb"VmHWM:\s+(\d+) kB")


def at_file(folder: Path) -> Path:
    """Says which record of the unit is being judged: its number among the records, or nothing."""
    return folder.with_name(folder.name + ".at")


def crash_file(folder: Path) -> Path:
    """Names the records of the unit that killed a worker: {number: rule, or "once"}."""
    return folder.with_name(folder.name + ".crashes.json")


def note_death(task: Any, exit_code: int) -> bool:
    """Called by the engine when a worker died on a UnitTask: remember its record. True where that is given up."""
    place = at_file(task.folder)
    at = place.read_text().strip() if place.is_file() else ""
    if not at:
        return False
    crashes = read_crashes(task.folder)
    killed = BY_ITSELF.get(-exit_code)
    # The kernel's way when memory is short.
    again = "memory" if exit_code == -signal.SIGKILL else "parser_crash"
    crashes[at] = killed or (again if at in crashes else FORGIVEN)
    file = crash_file(task.folder)
    file.with_suffix(".tmp").write_text(json.dumps(crashes))
    file.with_suffix(".tmp").replace(file)
    return crashes[at] != FORGIVEN


def read_crashes(folder: Path) -> dict[str, str]:
    """What note_death wrote."""
    file = crash_file(folder)
    return json.loads(file.read_text()) if file.is_file() else {}


class Watch:
    """Stands beside the loop over a unit's records: says on disk which is being judged, and limits it.

    limited: whether to set the limits (off where the unit runs in the caller's own process).
    """

    def __init__(self, folder: Path, cpu_seconds: int, memory_mb: int, limited: bool):
        self.cpu_seconds, self.memory, self.limited = cpu_seconds, memory_mb << 20, limited
        self._given_up = read_crashes(folder)
        self._at = os.open(at_file(folder), os.O_WRONLY | os.O_CREAT, 0o644)
        self._statm = _open("/proc/self/statm", os.O_RDONLY)
        self._clear = _open("/proc/self/clear_refs", os.O_WRONLY)
        self._resident = 0

    def given_up(self, number: int) -> str | None:
        """The rule by which this record was given up before, if it was."""
        rule = self._given_up.get(str(number))
        return None if rule == FORGIVEN else rule

    def begin(self, number: int) -> None:
        """From here to end(), what happens is this record's doing."""
        os.pwrite(self._at, f"{number:<12}".encode(), 0)
        if not self.limited:
            return
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + self.cpu_seconds)
        if self._statm is not None:
            fields = os.pread(self._statm, 128, 0).split()  # proc(5): size resident shared text lib data dt
            self._resident = int(fields[1]) * PAGE
            _limit(resource.RLIMIT_DATA, int(fields[5]) * PAGE + self.memory)
        if self._clear is not None:
            os.pwrite(self._clear, b"5", 0)  # the high-water mark starts anew

    def end(self) -> None:
        """The record is judged."""
        os.pwrite(self._at, b" " * 12, 0)
        if self.limited:
            _limit(resource.RLIMIT_CPU, None)
            _limit(resource.RLIMIT_DATA, None)

    def exhausted(self) -> bool:
        """Whether the record had half of its memory and more, so that an error of its parser is put down to that.

        Half: what asks for twice as much when it is full (vectors, hash tables) fails there.
        """
        if not self.limited or self._statm is None or self._clear is None:
            return False
        found = HIGH_WATER.search(Path("/proc/self/status").read_bytes())
        return bool(found) and int(found[1]) * 1024 - self._resident >= self.memory // 2

    def close(self) -> None:
        """Lift the limits; forget the place."""
        self.end()
        for handle in (self._at, self._statm, self._clear):
            if handle is not None:
                os.close(handle)


def _open(path: str, flags: int) -> int | None:
    with contextlib.suppress(OSError):  # not Linux, or hidden: the page's memory is then not limited
        return os.open(path, flags)
    return None


def _limit(kind: int, value: int | None) -> None:
    """Set a soft limit of this process; None lifts it to the hard one."""
    _, hard = resource.getrlimit(kind)
    with contextlib.suppress(ValueError):  # a hard limit below ours is stricter already
        resource.setrlimit(kind, (hard if value is None else value, hard))
