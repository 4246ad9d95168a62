"""Existing WARC, ARC or WET files: referenced by globs, never copied.

Notable: the manifest holds the paths as they were given (relative to the project where they can be), so that it
is the same on every machine with the same layout.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from core.errors import MissingError
from corpus.sources.source import BuildContext, FetchedFiles, SourceFile


@dataclass(frozen=True)
class WarcFiles:
    """WARC, ARC or WET files by path."""

    paths: str | list[str] = field(  # a glob or a list of globs, relative to the project, or fsspec URLs
        metadata={"needs": "a glob such as ../crawl/*.warc.gz"}
    )

    def check(self, name: str, root: Path) -> None:
        """Raises MissingError for a glob that matches nothing."""
        find_files(name, self.paths, root)

    def build(self, context: BuildContext) -> FetchedFiles:
        """Nothing is fetched or copied. Raises MissingError for a glob that matches nothing."""
        found = find_files(context.name, self.paths, context.root)
        return FetchedFiles(
            "WARC files given by path", [SourceFile(path, shown, False) for path, shown in found]
        )


def find_files(name: str, paths: str | list[str], root: Path) -> list[tuple[str, str]]:
    """What each glob matches, as (what to open, what the manifest says), sorted, each file once.

    `name`: the crawl's. Raises MissingError for a glob that matches nothing.
    """
    import fsspec

    found: dict[str, str] = {}
    for pattern in [paths] if isinstance(paths, str) else paths:
        remote = "://" in pattern
        system, path = fsspec.core.url_to_fs(pattern if remote else str(root / Path(pattern).expanduser()))
        matches = sorted(m for m in system.glob(path) if not system.isdir(m))
        if not matches:
            raise MissingError(
                f"crawl {name}: no file matches {pattern!r} (looked from {root}). Correct the path or the pattern."
            )
        for match in matches:
            if remote:
                found[system.unstrip_protocol(match)] = system.unstrip_protocol(match)
            else:
                found[match] = _manifest_path(pattern, match, root)
    return sorted(found.items(), key=lambda item: item[1])


def _manifest_path(pattern: str, match: str, root: Path) -> str:
    """A local match as the manifest writes it: absolute where the pattern was, else relative to the root."""
    if Path(pattern).expanduser().is_absolute():
        return str(PurePosixPath(match))
    return Path(os.path.relpath(match, root.resolve() if root.is_absolute() else root)).as_posix()
