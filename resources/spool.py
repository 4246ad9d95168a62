"""The spool: what is to be sent to MLflow, written to the local disk first, so that no server can lose or delay it.

One folder a run, `spool/KEY/`:
    ops.jsonl       the operations in order: start, tags, artifact, model, end (one JSON object a line)
    metrics.jsonl   points, written by the trainer: {"t": unix seconds, "step": int, "metrics": {name: number}}
    files/          copies of the artifacts to send
    sent.json       how far the server has acknowledged: the MLflow run id, and byte offsets into both files
    rejected.jsonl  what the server rejected permanently, with its reason
    .lock           held by the process that writes or sends the run; the kernel frees it if that process dies
A finished entry that the server has acknowledged in full is removed; one that was rejected in part is moved to
`spool/rejected/` for manual inspection.
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

from core.files import write_atomically
from resources.file_lock import FileLock

REJECTED = "rejected"  # a folder beside the entries; no run may have this key


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
        """A new entry, locked by this process. Its key begins with the run's name and time, to be readable."""
        plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:60] or "run"
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        entry = cls(spool / f"{plain}-{stamp}-{secrets.token_hex(4)}")
        entry.folder.mkdir(parents=True)
        entry.lock.acquire()
        return entry

    def try_lock(self) -> bool:
        """Lock the entry, unless a live process holds it or it was removed; returns whether we hold it."""
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
        """Add an operation; it is on disk (fsync) when the call returns."""
        line = json.dumps({"time": _now(), **operation}, ensure_ascii=False, default=str) + "\n"
        with open(self.ops_path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def append_point(self, step: int, metrics: dict[str, float]) -> None:
        """Add the values of one step, as the trainer does; a partial line of a killed trainer is terminated first."""
        line = json.dumps({"t": time.time(), "step": step, "metrics": metrics}) + "\n"
        with open(self.metrics_path, "a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())

    def copy_artifact(self, path: Path) -> str:
        """Copy an artifact into the entry; returns its path relative to the entry's folder."""
        number = len(list((self.folder / "files").glob("*")))
        relative = Path("files", f"{number:04d}", path.name)
        target = self.folder / relative
        target.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        return str(relative)

    def operations(self, offset: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Operations from a byte offset on, each with the offset after it; None for a line that cannot be parsed."""
        for after, line in _whole_lines(self.ops_path, offset):
            yield after, _parsed(line)

    def points(self, offset: int, limit: int) -> tuple[int, list[Point], list[str]]:
        """About `limit` points from a byte offset on: the offset after them, the points, the lines that are invalid."""
        points: list[Point] = []
        invalid: list[str] = []
        for after, line in _whole_lines(self.metrics_path, offset):
            parsed = _points_of(line)
            if points and len(points) + len(parsed or ()) > limit:
                break
            offset = after
            if parsed is None:
                invalid.append(line.decode("utf-8", "replace"))
            else:
                points += parsed
        return offset, points, invalid

    def sent(self) -> Sent:
        """What the server has acknowledged so far, from sent.json."""
        try:
            return Sent(**json.loads((self.folder / "sent.json").read_text("utf-8")))
        except FileNotFoundError:
            return Sent()

    def save_sent(self, sent: Sent) -> None:
        """Record in sent.json what the server has acknowledged."""
        write_atomically(self.folder / "sent.json", json.dumps(asdict(sent)))

    def reject(self, what: Any, reason: str) -> None:
        """Record what the server rejected permanently."""
        with open(self.folder / "rejected.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, "what": what}, ensure_ascii=False, default=str) + "\n")

    def started(self) -> bool:
        """Whether the entry holds a run at all: its process may have died before it wrote the start."""
        first = next(self.operations(0), (0, None))[1]
        return first is not None and first.get("op") == "start"

    def last_activity(self) -> int:
        """When the run last wrote something, in milliseconds since 1970."""
        written = [p.stat().st_mtime for p in (self.ops_path, self.metrics_path) if p.exists()]
        return int(max(written, default=time.time()) * 1000)

    def close(self) -> None:
        """Remove the entry, or move it to rejected/ if a part of it was rejected; release the lock."""
        if (self.folder / "rejected.jsonl").exists():
            rejected = self.folder.parent / REJECTED
            rejected.mkdir(exist_ok=True)
            os.rename(self.folder, rejected / self.key)
        else:
            removed = self.folder.with_name(
                f".{self.key}.sent"
            )  # hidden by one rename before the slow removal
            os.rename(self.folder, removed)
            shutil.rmtree(removed, ignore_errors=True)
        self.lock.release()


def entries(spool: Path) -> list[Entry]:
    """All entries, in the order in which their runs started."""
    if not spool.is_dir():
        return []
    folders = [f for f in spool.iterdir() if f.is_dir() and f.name != REJECTED and f.name[0] != "."]
    return [Entry(folder) for folder in sorted(folders, key=lambda f: f.name.rsplit("-", 2)[1:])]


def _now() -> int:
    return int(time.time() * 1000)


def _whole_lines(path: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    """Complete lines, each with the byte offset after it."""
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
    """The points of one line of metrics.jsonl, or None if the line is invalid."""
    try:
        value = json.loads(line)
        at, step = int(float(value["t"]) * 1000), int(value["step"])
        return [Point(name, float(v), at, step) for name, v in value["metrics"].items()]
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return None
