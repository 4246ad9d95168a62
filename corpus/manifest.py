"""The manifest of a crawl, `manifest.jsonl`: which files the crawl is made of, with their sizes, hashes and records."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import DataError, MissingError
from core.files import write_json_lines

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True, slots=True)
class WarcFile:
    """One file of a crawl. `records` counts those that get a row in the ledger, `broken` of them unreadable;
    `by_type` counts all. `local`: `file` is in the crawl's own folder; else it is a path or a URL.
    `origin`: the URL that a local file was copied from, if any."""

    file: str
    bytes: int
    sha256: str
    records: int
    broken: int
    by_type: dict[str, int]
    local: bool
    source: str
    origin: str = ""

    @property
    def name(self) -> str:
        """The file's name in the ledger."""
        return self.file

    def path(self, root: Path, folder: Path) -> str:
        """What to open: `root` is the project's folder, `folder` the crawl's."""
        if self.local:
            return str(folder / self.file)
        return self.file if "://" in self.file else str(root / self.file)


@dataclass(frozen=True, slots=True)
class CrawlSummary:
    """Sums over a crawl's files; `source` describes where its pages come from."""

    name: str
    source: str
    files: int
    bytes: int
    records: int
    broken: int
    by_type: dict[str, int]


def write_manifest(folder: Path, files: list[WarcFile]) -> None:
    """One JSON object a line, in the files' order, by rename. A file without an origin has no such field."""
    rows = (asdict(file) for file in files)
    write_json_lines(
        folder / MANIFEST, ({k: v for k, v in row.items() if k != "origin" or v} for row in rows)
    )


def read_manifest(folder: Path) -> list[WarcFile]:
    """The files of a crawl. Raises MissingError without a manifest, DataError for a damaged one."""
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingError(f"{path} is missing: the crawl was not made yet. Materialise raw_crawl first.")
    try:
        return [WarcFile(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}). Materialise raw_crawl again.") from error


def summarize(name: str, files: list[WarcFile]) -> CrawlSummary:
    """The sums over a manifest."""
    by_type: Counter[str] = Counter()
    for file in files:
        by_type.update(file.by_type)
    return CrawlSummary(
        name=name,
        source=files[0].source if files else "",
        files=len(files),
        bytes=sum(f.bytes for f in files),
        records=sum(f.records for f in files),
        broken=sum(f.broken for f in files),
        by_type=dict(sorted(by_type.items())),
    )
