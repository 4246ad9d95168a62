"""WARC, ARC or WET files that are there already: pointed to by globs, never copied.

Notable: the manifest holds the paths as they were given (relative to the project where they can be), so that it
is the same on every machine with the same layout.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from corpus.sources.source import Brought, Place, SourceFile


@dataclass(frozen=True)
class WarcFiles:
    """paths: a glob or a list of globs, relative to the project, or fsspec URLs."""

    paths: str | list = field(metadata={"needs": "a glob such as ../crawl/*.warc.gz"})

    def check(self, name: str, root: Path) -> None:
        find_files(name, self.paths, root)

    def build(self, place: Place) -> Brought:
        files = [
            SourceFile(path, shown, False) for path, shown in find_files(place.name, self.paths, place.root)
        ]
        return Brought("WARC files given by path", files)


def find_files(name: str, paths: str | list[str], root: Path) -> list[tuple[str, str]]:
    """What each glob matches, as (what to open, what the manifest says), sorted, each file once.

    Raises FileNotFoundError for a glob that matches nothing.
    """
    import fsspec

    found: dict[str, str] = {}
    for pattern in [paths] if isinstance(paths, str) else paths:
        remote = "://" in pattern
        system, path = fsspec.core.url_to_fs(pattern if remote else str(root / Path(pattern).expanduser()))
        matches = sorted(m for m in system.glob(path) if not system.isdir(m))
        if not matches:
            raise FileNotFoundError(
                f"crawl {name}: no file matches {pattern!r} (looked from {root}). Correct the path or the pattern."
            )
        for match in matches:
            if remote:
                found[system.unstrip_protocol(match)] = system.unstrip_protocol(match)
            else:
                found[match] = _shown(pattern, match, root)
    return sorted(found.items(), key=lambda item: item[1])


def _shown(pattern: str, match: str, root: Path) -> str:
    """A local match as the manifest writes it: absolute where the pattern was, else relative to the root."""
    if Path(pattern).expanduser().is_absolute():
        return str(PurePosixPath(match))
    return Path(os.path.relpath(match, root.resolve() if root.is_absolute() else root)).as_posix()
