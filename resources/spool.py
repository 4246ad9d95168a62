"""The spool: what MLflow shall hear, written to our own disk first, so that no server can lose or delay it.

One folder a run, `spool/KEY/`:
    ops.jsonl       what was asked, in order: start, tags, artifact, model, end (one JSON object a line)
    metrics.jsonl   points, written by the trainer: {"t": unix seconds, "step": int, "metrics": {name: number}}
    files/          copies of the artifacts that shall be sent
    sent.json       how far the server has acknowledged: the MLflow run id, and byte offsets into both files
    rejected.jsonl  what the server refused for good, with its reason
    .lock           held by the process whose run it is, or that sends it; the system frees it if that one dies
A finished entry that the server has wholly acknowledged is removed; one of which it refused a part goes to
`spool/rejected/`, for a person to look at.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from resources.file_lock import FileLock

REJECTED = "rejected"  # the folder beside the entries; no run may have this key


class Point(NamedTuple):
    """One value of one metric; `time` in milliseconds since 1970, as MLflow counts."""

    name: str
    value: float
    time: int
    step: int


@dataclass
class Sent:
    """How far the server has acknowledged an entry."""

    run_id: str | None = None
    ops: int = 0  # bytes of ops.jsonl
    metrics: int = 0  # bytes of metrics.jsonl
    ended: bool = False


class Entry:
    """One run's folder in the spool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder.name
        self.ops_path = folder / "ops.jsonl"
        self.metrics_path = folder / "metrics.jsonl"
        self.lock = FileLock(folder / ".lock")

    @classmethod
    def create(cls, spool: Path, name: str) -> Entry:
        """A new entry, locked by us. Its key begins with the run's name and the time, for people who look."""
        plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:60] or "run"
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        entry = cls(spool / f"{plain}-{stamp}-{secrets.token_hex(4)}")
        entry.folder.mkdir(parents=True)
        entry.lock.acquire()
        return entry

    def take(self) -> bool:
        """Lock the entry unless a living process has it."""
        try:
            if not self.lock.acquire():
                return False
        except FileNotFoundError:  # sent and removed meanwhile
            return False
        if not self.folder.exists():
            self.lock.release()
            return False
        return True

    def append(self, **operation: Any) -> None:
        """Add an operation and see it safe on disk before going on."""
        line = json.dumps({"time": _now(), **operation}, ensure_ascii=False, default=str) + "\n"
        with open(self.ops_path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def append_point(self, step: int, metrics: dict[str, float]) -> None:
        """Add values of one step, as the trainer does; a half-written line of a killed trainer is ended first."""
        line = json.dumps({"t": time.time(), "step": step, "metrics": metrics}) + "\n"
        with open(self.metrics_path, "a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())

    def keep_copy(self, path: Path) -> str:
        """Copy an artifact into the entry; returns its place below files/."""
        number = len(list((self.folder / "files").glob("*")))
        place = Path("files", f"{number:04d}", path.name)
        target = self.folder / place
        target.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        return str(place)

    def operations(self, offset: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Operations from a byte offset on, each with the offset after it; None stands for a broken line."""
        for after, line in _whole_lines(self.ops_path, offset):
            yield after, _parsed(line)

    def points(self, offset: int, limit: int) -> tuple[int, list[Point], list[str]]:
        """About `limit` points from a byte offset on: the offset after them, they, and the lines that are none."""
        points: list[Point] = []
        broken: list[str] = []
        for after, line in _whole_lines(self.metrics_path, offset):
            read = _points_of(line)
            if points and len(points) + len(read or ()) > limit:
                break
            offset = after
            if read is None:
                broken.append(line.decode("utf-8", "replace"))
            else:
                points += read
        return offset, points, broken

    def sent(self) -> Sent:
        try:
            return Sent(**json.loads((self.folder / "sent.json").read_text("utf-8")))
        except FileNotFoundError:
            return Sent()

    def remember(self, sent: Sent) -> None:
        """Write down what was acknowledged, by temporary name and rename."""
        temporary = self.folder / "sent.json.partial"
        temporary.write_text(json.dumps(asdict(sent)), "utf-8")
        os.replace(temporary, self.folder / "sent.json")

    def reject(self, what: Any, reason: str) -> None:
        """Write down what the server refused for good."""
        with open(self.folder / "rejected.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, "what": what}, ensure_ascii=False, default=str) + "\n")

    def started(self) -> bool:
        """Whether the entry tells of a run at all; its process may have died before it could."""
        first = next(self.operations(0), (0, None))[1]
        return first is not None and first.get("op") == "start"

    def last_sign(self) -> int:
        """When the run last wrote something, in milliseconds since 1970."""
        written = [p.stat().st_mtime for p in (self.ops_path, self.metrics_path) if p.exists()]
        return int(max(written, default=time.time()) * 1000)

    def close(self) -> None:
        """Remove the entry, or set it aside if a part of it was refused; give the lock back."""
        if (self.folder / "rejected.jsonl").exists():
            aside = self.folder.parent / REJECTED
            aside.mkdir(exist_ok=True)
            os.rename(self.folder, aside / self.key)
        else:
            gone = self.folder.with_name(f".{self.key}.sent")  # first out of sight at one stroke
            os.rename(self.folder, gone)
            shutil.rmtree(gone, ignore_errors=True)
        self.lock.release()


def entries(spool: Path) -> list[Entry]:
    """All entries, in the order in which their runs began."""
    if not spool.is_dir():
        return []
    folders = [f for f in spool.iterdir() if f.is_dir() and f.name != REJECTED and f.name[0] != "."]
    return [Entry(folder) for folder in sorted(folders, key=lambda f: f.name.rsplit("-", 2)[1:])]


def _now() -> int:
    return int(time.time() * 1000)


def _whole_lines(path: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are wholly written, each with the byte offset after it."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            if line.strip():
                yield offset, line


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _points_of(line: bytes) -> list[Point] | None:
    """The points of one line of metrics.jsonl, or None if it is not one."""
    value = _parsed(line)
    try:
        at, step = int(float(value["t"]) * 1000), int(value["step"])
        return [Point(name, float(v), at, step) for name, v in value["metrics"].items()]
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return None
