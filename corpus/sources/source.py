"""What a source of a crawl is: a frozen dataclass whose fields are its knobs in params.yaml, with three methods.

    check(name, root)          raises a sentence where what it names on this machine is not there
    build(place) -> Brought    brings the files
    shorthand(words) -> spec   (class method; optional) what `--crawl NAME=source:words` means

A file that cannot be had fails the crawl or stands in `fetch-log.jsonl` with its reason: nothing vanishes.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, get_type_hints

FETCH_LOG = "fetch-log.jsonl"  # one row for everything that was asked for: url, outcome, reason, …
FETCHED = "fetched"  # the outcome of what was had; any other is a reason why not


@dataclass(frozen=True, slots=True)
class Place:
    """Where a crawl is made. `out` is to be filled; what is in `work` is found again after a crash.

    `before` is the version that stands there now, if any, and `kept` gives the file in it that came from an
    origin, hashed and found unchanged.
    """

    name: str
    out: Path
    work: Path
    root: Path
    before: Path | None = None
    kept: Callable[[str], Path | None] = lambda origin: None


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the crawl: what to open, what the manifest calls it, whether it stands in the crawl's folder,
    and the URL that it was copied from, if any (a byte range of it: `URL#bytes=0-999`)."""

    path: str
    file: str
    local: bool
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Brought:
    """What a source has brought, and in words where it comes from."""

    words: str
    files: list[SourceFile]


class Source(Protocol):
    """See above."""

    def check(self, name: str, root: Path) -> None: ...

    def build(self, place: Place) -> Brought: ...


def read_knobs(cls: type, source: str, where: str, spec: Mapping[str, Any]) -> Any:
    """The source that a section of params.yaml describes. Raises ValueError, a sentence that begins with `where`."""
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(spec) - set(known))
    if unknown:
        raise ValueError(
            f"{where}: unknown {', '.join(unknown)}; the source {source!r} knows {', '.join(sorted(known))}."
        )
    for name, field in known.items():
        if field.default is MISSING and spec.get(name) in (None, "", []):
            raise ValueError(f"{where}: the source {source!r} needs {name!r}, {field.metadata['needs']}.")
    hints = get_type_hints(cls)
    for name, value in spec.items():
        if not isinstance(value, hints[name]) or (isinstance(value, bool) and hints[name] is not bool):
            wanted = getattr(hints[name], "__name__", None) or str(hints[name])
            raise ValueError(f"{where}: {name} is {value!r}; it must be of the kind {wanted}.")
    try:
        return cls(**spec)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def at_least(source: Any, **bounds: float) -> None:
    """Raise ValueError unless each named knob, where it is set, is at least its bound."""
    for name, bound in bounds.items():
        value = getattr(source, name)
        if value is not None and value < bound:
            raise ValueError(f"{name} is {value}; it must be at least {bound}.")


def local_files(out: Path, origins: Mapping[str, str] | None = None) -> list[SourceFile]:
    """The WARC files that stand in a crawl's own folder, by name; `origins`: file name -> URL."""
    return [
        SourceFile(str(path), path.name, True, (origins or {}).get(path.name, ""))
        for path in sorted(out.glob("*.gz"))
    ]


def place_file(path: Path, out: Path) -> None:
    """Let a finished file stand at `out` too: as a hard link, or a copy where the disk has none."""
    out.unlink(missing_ok=True)
    try:
        os.link(path, out)
    except OSError:
        partial = out.with_name(out.name + ".partial")
        shutil.copyfile(path, partial)
        partial.replace(out)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, by rename."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    partial.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file up to the first damaged one (the line that a killed process was writing)."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            rows.append(json.loads(line))
    return rows
