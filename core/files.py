"""Writing and removing files so that a crash leaves the old content or the new, never half of either."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from core.errors import DataError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` for the body to write to; it becomes `path` when the body ends without error.

    The content is on disk before the rename. The mode is that of the file replaced, else 0644. On an error the
    temporary file is removed and `path` stays as it was. Raises OSError.
    """
    path = Path(path)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file by rename; text as UTF-8, as it is. Raises OSError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON by rename, its folder made if missing; keys sorted, so that equal values give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, by rename. Raises OSError."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file without a last line that a killed process has not finished; none without a file.

    Raises DataError for a finished line that is no JSON.
    """
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number}, is damaged ({error}). Restore or remove the file."
                ) from error
    return rows


def open_lines(path: Path) -> TextIO:
    """Open a file of lines for appending, its folder made if missing; a line cut by a kill is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    return open(path, "a", encoding="utf-8")


def append_line(path: Path, value: Any) -> None:
    """Add one line of JSON to a file."""
    with open_lines(path) as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """An empty folder OUT.partial for the body to fill; it becomes `out` when the body ends without error.

    What a killed run left in OUT.partial is removed first. Raises OSError.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    replace_folder(partial, out)


def replace_folder(done: Path, out: Path) -> None:
    """Put the finished folder `done` at `out` by rename; an `out` that is there is moved away, then removed."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(done, out)
    shutil.rmtree(old, ignore_errors=True)


def remove_tree(path: Path) -> None:
    """Remove a file, a link or a folder. Folders in it may be read-only; what a link points to stays untouched."""

    def retry(function: Callable[..., object], name: str, _: object) -> None:
        parent = os.path.dirname(name)
        os.chmod(parent, stat.S_IMODE(os.stat(parent).st_mode) | stat.S_IRWXU)
        if os.path.isdir(name) and not os.path.islink(name):
            os.chmod(name, stat.S_IRWXU)
            shutil.rmtree(name)
        elif os.path.lexists(name):
            os.unlink(name)

    if path.is_symlink() or path.is_file():
        path.unlink()
    elif sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=retry)
    else:
        shutil.rmtree(path, onerror=retry)
