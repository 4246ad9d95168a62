"""Units that the tests of the engines run: they are imported by name, in other processes."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from corpus.unit import UnitTask, clean_unit


@dataclass(frozen=True)
class Number:
    """A number, and a folder to leave marks in."""

    value: int
    folder: Path


def square(task: Number, progress: Callable[[int], None]) -> dict[str, int]:
    """Compute a square."""
    progress(task.value)
    return {"square": task.value**2}


def wait_long(task: Number, progress: Callable[[int], None]) -> int:
    """Write this process's id and sleep; the number 0 is done at once."""
    (task.folder / f"{task.value}.pid").write_text(str(os.getpid()))
    if task.value:
        time.sleep(600)
    return task.value


def refuse(task: Number, progress: Callable[[int], None]) -> int:
    """Raise for the number 1."""
    if task.value == 1:
        raise ValueError("the number 1 is not for me")
    return task.value


def always_killed(task: Number, progress: Callable[[int], None]) -> int:
    """Kill this process and its parent, the engine's own worker."""
    print("here I end", flush=True)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
    return task.value


def unit_killed_once(task: UnitTask, progress: Callable[[int], None]) -> Path:
    """Clean a file; the first time the second file is cleaned, this process is killed half-way."""
    return _killed_once(task, os.getpid() if "01" in task.name else 0)


def all_killed_once(task: UnitTask, progress: Callable[[int], None]) -> Path:
    """The same, and for the third file the engine's own worker, our parent, is killed too."""
    return _killed_once(task, {"01": os.getpid(), "02": os.getppid()}.get(task.name[7:9], 0))


def _killed_once(task: UnitTask, victim: int) -> Path:
    mark, reports = task.folder.with_suffix(".was_killed"), []

    def progress(amount: int) -> None:
        reports.append(amount)
        if victim and len(reports) == 2 and not mark.exists():
            mark.touch()
            os.kill(victim, signal.SIGKILL)
            time.sleep(60)  # the kernel ends us with our parent

    return clean_unit(task, progress)


def refused_once(task: UnitTask, progress: Callable[[int], None]) -> Path:
    """Clean a file; the first time, the second file's disk is full."""
    mark = task.folder.with_suffix(".was_full")
    if task.name.endswith("01.warc.gz") and not mark.exists():
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
        raise OSError(28, "No space left on device")
    return clean_unit(task, progress)


def fatal_pages(task: UnitTask, progress: Callable[[int], None]) -> Path:
    """Clean a file with a parser that "FATAL n" in a page kills by signal n."""
    import re

    from corpus import unit

    whole = unit.judge_record

    def judge_record(record, config, urls):
        if found := re.search(rb"FATAL (\d+)", getattr(record, "payload", b"")):
            os.kill(os.getpid(), int(found[1]))
        return whole(record, config, urls)

    unit.judge_record = judge_record
    return clean_unit(task, progress)
