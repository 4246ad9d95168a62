"""What a source of a crawl is: a frozen dataclass whose fields are its settings in params.yaml, with three methods.

    check(name, root)               raises MissingError where what it names on this machine is not there
    build(context) -> FetchedFiles  fetches or builds the files
    shorthand(argument) -> spec     (class method; optional) what `--crawl NAME=source:ARGUMENT` means

A file that cannot be fetched fails the crawl or is listed in `fetch-log.jsonl` with its reason: nothing vanishes.
A module that defines a source loads no library when it is imported: params.yaml is checked at every start.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.files import atomic_path

FETCH_LOG = "fetch-log.jsonl"  # one row for everything that was asked for: url, outcome, reason, …
FETCHED = "fetched"  # the outcome of what was fetched; any other is the reason of a failure


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Where a crawl is built. `out` is the folder to fill; what is in `work` is found again after a crash.

    `root`: the project's folder. `previous`: the folder of the crawl's last version, if any; `reusable` gives the
    file in it that was copied from an origin (see SourceFile), if its hash is still that of the manifest.
    """

    name: str
    out: Path
    work: Path
    root: Path
    previous: Path | None = None
    reusable: Callable[[str], Path | None] = lambda origin: None


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the crawl: what to open, its name in the manifest, whether it is in the crawl's folder,
    and the URL that it was copied from, if any (a byte range of it: `URL#bytes=0-999`)."""

    path: str
    file: str
    local: bool
    origin: str = ""


@dataclass(frozen=True, slots=True)
class FetchedFiles:
    """The files that a source has fetched or built, and where they come from, for the manifest's `source`."""

    description: str
    files: list[SourceFile]


class Source(Protocol):
    """A source of a crawl: see the module's docstring."""

    def check(self, name: str, root: Path) -> None: ...

    def build(self, context: BuildContext) -> FetchedFiles: ...


def require_at_least(settings: object, **bounds: float) -> None:
    """Raise ValueError unless each named setting, where it is not None, is at least its bound."""
    for name, bound in bounds.items():
        value = getattr(settings, name)
        if value is not None and value < bound:
            raise ValueError(f"{name} is {value}; it must be at least {bound}.")


def local_files(out: Path, origins: Mapping[str, str] | None = None) -> list[SourceFile]:
    """The WARC files in a crawl's own folder, by name; `origins`: file name -> URL."""
    return [
        SourceFile(str(path), path.name, True, (origins or {}).get(path.name, ""))
        for path in sorted(out.glob("*.gz"))
    ]


def link_or_copy(path: Path, out: Path) -> None:
    """Make a finished file available at `out` too: as a hard link, or a copy where the file system has none."""
    out.unlink(missing_ok=True)
    try:
        os.link(path, out)
    except OSError:
        with atomic_path(out) as temporary:
            shutil.copyfile(path, temporary)
