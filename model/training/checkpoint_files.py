"""One checkpoint on disk: a folder whose checkpoint.json holds the sha256 of every other file in it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from core.errors import RunError
from core.files import write_atomically
from core.hashing import file_sha256

FIELDS = {"step", "periodic", "score", "state", "identity", "computed", "sha256"}  # of checkpoint.json
NAME, PARTIAL, REMOVING = (
    re.compile(r"step-\d{8,}"),
    ".partial",
    ".going",
)  # names of folders, and their endings


class CheckpointError(RunError):
    """A checkpoint that could not be written, or from which this run cannot resume."""


def damage(folder: Path, share: slice = slice(None)) -> str | None:
    """What is wrong with this checkpoint, as half a sentence; None if every byte is as it was written.

    share: which of its files to check, in the order of their names.
    """
    record = read_record(folder)
    if record is None:
        return "checkpoint.json cannot be read"
    for name, expected in sorted(record["sha256"].items())[share]:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_sha256(folder / name) != expected:
            return f"{name} is truncated or altered (its sha256 is not the recorded one)"
    return None


def read_record(folder: Path) -> dict[str, Any] | None:
    """checkpoint.json; None where it cannot be read or lacks a field."""
    try:
        record = json.loads((folder / "checkpoint.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.keys() >= FIELDS else None


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write checkpoint.json, which makes the folder complete. Raises OSError."""
    write_atomically(folder / "checkpoint.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    flush(folder)


def differences(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> list[str]:
    """In which values two nested dictionaries differ: "config.lr was 0.01, is 0.02"."""
    found = []
    for key in sorted(set(theirs) | set(ours)):
        old, new = theirs.get(key), ours.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {_short(old)}, is {_short(new)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def rank_prefix(rank: int) -> str:
    """How the names of a rank's files begin."""
    return f"rank-{rank:05d}"


def flushed_sha256(path: Path) -> str:
    """A file's sha256, once its bytes are on disk. Raises OSError."""
    flush(path)
    return file_sha256(path)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a kill leaves none that looks complete."""
    removed = folder.with_name(folder.name + REMOVING)
    shutil.rmtree(removed, ignore_errors=True)
    os.rename(folder, removed)
    shutil.rmtree(removed, ignore_errors=True)


def flush(path: Path) -> None:
    """Force a file or folder to disk, so that no rename is on disk before what it names. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
