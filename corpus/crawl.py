"""From what `params.yaml` says about a crawl to `manifest.jsonl`: which files it is made of, and their hashes.

Notable: this file only chooses the source (one file each in corpus/sources), hashes what it brought and writes it
down. Files that a former version took from the same place are used again, after hashing them.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from corpus.sources.commoncrawl import CommonCrawl
from corpus.sources.sample import Sample
from corpus.sources.source import (
    FETCH_LOG,
    FETCHED,
    Place,
    Source,
    SourceFile,
    read_knobs,
    read_rows,
    write_rows,
)
from corpus.sources.text import ReadyText
from corpus.sources.urls import UrlList
from corpus.sources.warc_files import WarcFiles, find_files
from corpus.warc import BrokenRecord, open_archive, read_records

__all__ = ["build_crawl", "check_spec", "find_files", "read_manifest", "verify"]

MANIFEST = "manifest.jsonl"
SOURCES: dict[str, type] = {
    "sample": Sample,
    "warc": WarcFiles,
    "commoncrawl": CommonCrawl,
    "urls": UrlList,
    "text": ReadyText,
}


@dataclass(frozen=True, slots=True)
class WarcFile:
    """One file of a crawl. `records` counts those that get a row in the ledger, `broken` of them unreadable;
    `by_type` counts all. `local`: `file` stands in the crawl's own folder; else it is a path or a URL.
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
        """The name that the file goes by in the ledger."""
        return self.file

    def path(self, root: Path, folder: Path) -> str:
        """What to open: `root` is the project's folder, `folder` the crawl's."""
        if self.local:
            return str(folder / self.file)
        return self.file if "://" in self.file else str(root / self.file)


@dataclass(frozen=True, slots=True)
class CrawlSummary:
    """Sums over a crawl's files; `source` says in words where its pages come from."""

    name: str
    source: str
    files: int
    bytes: int
    records: int
    broken: int
    by_type: dict[str, int]


def build_crawl(
    name: str,
    spec: dict,
    out: Path,
    root: Path,
    workers: int | None = None,
    work: Path | None = None,
    before: Path | None = None,
) -> CrawlSummary:
    """Make the folder `out` of a crawl: `manifest.jsonl` and the files that its source brings.

    `spec` is `{source: NAME, …}` with the knobs of that source (SOURCES); paths in it are relative to `root`.
    `work`: where downloads in progress are kept for the next try (beside `out` if not given; it goes when the
    crawl is made). `before`: the folder of the crawl's last version, whose files are used again where they came
    from the same origin. Raises ValueError for a spec that makes no sense, FileNotFoundError where nothing
    matches, and corpus.sources.download.CannotFetch.
    """
    source = check_spec(name, spec)
    out.mkdir(parents=True, exist_ok=True)
    own_work = work is None
    work = out.with_name(f".{out.name}.work") if work is None else work
    work.mkdir(parents=True, exist_ok=True)
    known = _by_origin(before)
    kept = partial(_kept, known, before)
    brought = source.build(Place(name, out, work, root, before, kept))
    files = _describe_all(brought.files, brought.words, workers)
    write_manifest(out, files)
    if own_work:
        shutil.rmtree(work)
    return summarize(name, files)


def check_spec(name: str, spec: dict) -> Source:
    """The source that a crawl's section in params.yaml describes. Raises ValueError, a sentence."""
    spec = dict(spec)
    source = spec.pop("source", None)
    where = f"params.yaml, crawls.{name}"
    if source not in SOURCES:
        raise ValueError(f"{where}: the source is {source!r}; it must be one of {', '.join(SOURCES)}.")
    return read_knobs(SOURCES[source], source, where, spec)


def parse_crawl(word: str, root: Path) -> tuple[str, dict]:
    """What `--crawl` was given, as a crawl's name and its spec: `NAME=SOURCE:…` or `NAME=GLOB` of WARC files.

    Raises ValueError or FileNotFoundError, a sentence, before params.yaml names a crawl that cannot be made.
    """
    name, _, what = word.partition("=")
    if not name or not what:
        raise ValueError(
            f"--crawl {word}: write NAME=GLOB, as in news='warcs/*.warc.gz', or NAME=SOURCE:…, "
            "as in cc=commoncrawl:CC-MAIN-2026-45:10"
        )
    source, colon, rest = what.partition(":")
    shorthand = getattr(SOURCES.get(source), "shorthand", None) if colon else None
    spec = {"source": source, **shorthand(rest)} if shorthand else {"source": "warc", "paths": what}
    check_spec(name, spec).check(name, root)
    return name, spec


def not_fetched(folder: Path) -> Counter[str]:
    """How much of what a crawl asked for it does not hold, by reason (its fetch log says which)."""
    return Counter(row["outcome"] for row in read_rows(folder / FETCH_LOG) if row["outcome"] != FETCHED)


def _by_origin(before: Path | None) -> dict[str, WarcFile]:
    if before is None or not (before / MANIFEST).is_file():
        return {}
    return {file.origin: file for file in read_manifest(before) if file.origin and file.local}


def _kept(known: dict[str, WarcFile], before: Path | None, origin: str) -> Path | None:
    """The file of the last version that came from `origin`, if its bytes still are what its manifest says."""
    file = known.get(origin)
    path = before / file.file if before and file else None
    if path is None or not path.is_file() or hash_file(path) != (file.bytes, file.sha256):
        return None
    return path


def _describe_all(found: list[SourceFile], words: str, workers: int | None) -> list[WarcFile]:
    """Hash and count every file, in a pool where there are many, with a bar on stderr."""
    from tqdm import tqdm

    one = partial(_describe, words=words)
    bar = partial(tqdm, total=len(found), desc="hashing the crawl", unit="file", mininterval=_interval())
    workers = min(workers or os.cpu_count() or 1, len(found))
    if workers <= 1 or sum(_size(file.path) for file in found) < 64 << 20:
        return list(bar(map(one, found)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(bar(pool.map(one, found)))


def _interval() -> float:
    import sys

    return 0.5 if sys.stderr.isatty() else 10.0


def _size(path: str) -> int:
    return os.path.getsize(path) if "://" not in path else 64 << 20


def _describe(found: SourceFile, words: str) -> WarcFile:
    counts: Counter[str] = Counter()
    records = broken = 0
    for record in read_records(found.path, found.file, counts):
        records += 1
        broken += isinstance(record, BrokenRecord)
    size, sha256 = hash_file(found.path)
    by_type = dict(sorted(counts.items()))
    return WarcFile(found.file, size, sha256, records, broken, by_type, found.local, words, found.origin)


def hash_file(path: str | Path) -> tuple[int, str]:
    """A file's size in bytes and its sha256, local or by URL."""
    digest, size = hashlib.sha256(), 0
    with open_archive(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def write_manifest(folder: Path, files: list[WarcFile]) -> None:
    """One JSON object a line, in the files' order, by rename. A file without an origin says nothing of it."""
    rows = [asdict(file) for file in files]
    write_rows(folder / MANIFEST, [{k: v for k, v in row.items() if k != "origin" or v} for row in rows])


def read_manifest(folder: Path) -> list[WarcFile]:
    """The files of a crawl. Raises FileNotFoundError or ValueError, a sentence, without a good manifest."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the crawl was not made yet. Materialise raw_crawl first."
        )
    try:
        return [WarcFile(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}). Materialise raw_crawl again.") from error


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


def verify(folder: Path, root: Path) -> list[str]:
    """Hash every file of the manifest again: one sentence for each that is gone or not what it was."""
    return list(_differences(folder, root))


def _differences(folder: Path, root: Path) -> Iterator[str]:
    for file in read_manifest(folder):
        path = file.path(root, folder)
        try:
            size, sha256 = hash_file(path)
        except OSError as error:
            yield f"{path}: cannot be read ({error})."
            continue
        if (size, sha256) != (file.bytes, file.sha256):
            yield (
                f"{path}: {size:,} bytes with sha256 {sha256[:16]}… where {folder / MANIFEST} says "
                f"{file.bytes:,} bytes with {file.sha256[:16]}…. Restore the file or build the crawl again."
            )
