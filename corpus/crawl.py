"""Build a crawl: have its source fetch or write the files, hash and count them, write `manifest.jsonl`.

Notable: files that the last version copied from the same origin are used again, after hashing them.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from core.files import read_json_lines
from core.progress import progress_bar
from corpus.crawl_spec import check_spec
from corpus.manifest import (
    MANIFEST,
    CrawlSummary,
    WarcFile,
    read_manifest,
    summarize,
    write_manifest,
)
from corpus.sources.source import FETCH_LOG, FETCHED, BuildContext, SourceFile
from corpus.stream import hash_archive
from corpus.warc import BrokenRecord, read_records

POOL_BYTES = (
    64 << 20
)  # of files, from which on they are hashed in a pool; also the assumed size of a remote file


def build_crawl(
    name: str,
    spec: Mapping[str, Any],
    out: Path,
    root: Path,
    workers: int | None = None,
    work: Path | None = None,
    previous: Path | None = None,
) -> CrawlSummary:
    """Build the folder `out` of a crawl: `manifest.jsonl` and the files that its source fetches or writes.

    `spec` is `{source: NAME, …}` with the settings of that source (corpus.crawl_spec); paths in it are relative to
    `root`. `work`: where downloads in progress are kept for the next try (beside `out` if not given, and removed when
    the crawl is built). `previous`: the folder of the crawl's last version, whose files are used again where they came
    from the same origin. Raises ConfigError, MissingError where nothing matches, DataError or RunError (such as
    corpus.sources.remote.PermanentFetchError).
    """
    source = check_spec(name, spec)
    out.mkdir(parents=True, exist_ok=True)
    own_work = work is None
    work = out.with_name(f".{out.name}.work") if work is None else work
    work.mkdir(parents=True, exist_ok=True)
    reusable = partial(_reusable, previous, _by_origin(previous))
    fetched = source.build(BuildContext(name, out, work, root, previous, reusable))
    files = _describe_all(fetched.files, fetched.description, workers)
    write_manifest(out, files)
    if own_work:
        shutil.rmtree(work)
    return summarize(name, files)


def not_fetched(folder: Path) -> Counter[str]:
    """How many of the things that a crawl asked for it does not hold, by reason (its fetch log lists them)."""
    rows = read_json_lines(folder / FETCH_LOG)
    return Counter(row["outcome"] for row in rows if row["outcome"] != FETCHED)


def _by_origin(previous: Path | None) -> dict[str, WarcFile]:
    if previous is None or not (previous / MANIFEST).is_file():
        return {}
    return {file.origin: file for file in read_manifest(previous) if file.origin and file.local}


def _reusable(previous: Path | None, by_origin: dict[str, WarcFile], origin: str) -> Path | None:
    """The file of the last version that came from `origin`, if its bytes still are what its manifest says."""
    file = by_origin.get(origin)
    if previous is None or file is None:
        return None
    path = previous / file.file
    return path if path.is_file() and hash_archive(path) == (file.bytes, file.sha256) else None


def _describe_all(found: list[SourceFile], description: str, workers: int | None) -> list[WarcFile]:
    """Hash and count every file, in a pool where there are many, with a bar on stderr."""
    describe = partial(_describe, description=description)
    bar = partial(progress_bar, len(found), "hashing the crawl", "file")
    workers = min(workers or os.cpu_count() or 1, len(found))
    if workers <= 1 or sum(_size(file.path) for file in found) < POOL_BYTES:
        return list(bar(iterable=map(describe, found)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(bar(iterable=pool.map(describe, found)))


def _size(path: str) -> int:
    return os.path.getsize(path) if "://" not in path else POOL_BYTES


def _describe(found: SourceFile, description: str) -> WarcFile:
    counts: Counter[str] = Counter()
    records = broken = 0
    for record in read_records(found.path, found.file, counts):
        records += 1
        broken += isinstance(record, BrokenRecord)
    size, sha256 = hash_archive(found.path)
    by_type = dict(sorted(counts.items()))
    return WarcFile(
        found.file, size, sha256, records, broken, by_type, found.local, description, found.origin
    )


def verify(folder: Path, root: Path) -> list[str]:
    """Hash every file of the manifest again: one sentence for each that is missing or not what it was."""
    return list(_differences(folder, root))


def _differences(folder: Path, root: Path) -> Iterator[str]:
    for file in read_manifest(folder):
        path = file.path(root, folder)
        try:
            size, sha256 = hash_archive(path)
        except OSError as error:
            yield f"{path}: cannot be read ({error})."
            continue
        if (size, sha256) != (file.bytes, file.sha256):
            yield (
                f"{path}: {size:,} bytes with sha256 {sha256[:16]}… where {folder / MANIFEST} says "
                f"{file.bytes:,} bytes with {file.sha256[:16]}…. Restore the file or build the crawl again."
            )
