"""From what `params.yaml` says about a crawl to `manifest.jsonl`: which files it is made of, and their hashes.

Notable: a crawl of one's own WARC files is *pointed to*, not copied; its manifest holds the paths as they were
given (relative to the project where they can be), so that it is the same on every machine with the same layout.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

from corpus.sources.sample import build_sample
from corpus.warc import BrokenRecord, open_archive, read_records

MANIFEST = "manifest.jsonl"
SOURCES = {"sample": {"pages", "seed", "files"}, "warc": {"paths"}}  # source: the knobs it knows


@dataclass(frozen=True, slots=True)
class WarcFile:
    """One file of a crawl. `records` counts those that get a row in the ledger, `broken` of them unreadable;
    `by_type` counts all. `local`: `file` stands in the crawl's own folder; else it is a path or a URL."""

    file: str
    bytes: int
    sha256: str
    records: int
    broken: int
    by_type: dict[str, int]
    local: bool
    source: str

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


def build_crawl(name: str, spec: dict, out: Path, root: Path, workers: int | None = None) -> CrawlSummary:
    """Make the folder `out` of a crawl: `manifest.jsonl` and, for the sample, its WARC files and truth.parquet.

    `spec` is `{source: sample, pages, seed, files}` or `{source: warc, paths: glob or list of globs}`, where
    globs are relative to `root` or fsspec URLs. Raises ValueError for a spec that makes no sense and
    FileNotFoundError where nothing matches.
    """
    spec = dict(spec)
    source = spec.pop("source", None)
    check_spec(name, source, spec)
    out.mkdir(parents=True, exist_ok=True)
    if source == "sample":
        words = build_sample(out, **spec)
        found = [(str(p), p.name, True) for p in sorted(out.glob("*.warc.gz"))]
    else:
        words = "WARC files given by path"
        found = [(path, shown, False) for path, shown in find_files(name, spec["paths"], root)]
    files = _describe_all(found, words, workers)
    write_manifest(out, files)
    return summarize(name, files)


def check_spec(name: str, source: str | None, spec: dict) -> None:
    """Raises ValueError, a sentence, where a crawl's section in params.yaml cannot be understood."""
    known = SOURCES.get(source or "")
    where = f"params.yaml, crawls.{name}"
    if known is None:
        raise ValueError(f"{where}: the source is {source!r}; it must be one of {', '.join(SOURCES)}.")
    unknown = sorted(set(spec) - known)
    if unknown:
        raise ValueError(
            f"{where}: unknown {', '.join(unknown)}; the source {source!r} knows {', '.join(sorted(known))}."
        )
    if source == "warc" and not spec.get("paths"):
        raise ValueError(f"{where}: the source 'warc' needs 'paths', a glob such as ../crawl/*.warc.gz.")


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


def _describe_all(found: list[tuple[str, str, bool]], words: str, workers: int | None) -> list[WarcFile]:
    """Hash and count every file, in a pool where there are many, with a bar on stderr."""
    from tqdm import tqdm

    one = partial(_describe, words=words)
    bar = partial(tqdm, total=len(found), desc="hashing the crawl", unit="file", mininterval=_interval())
    workers = min(workers or os.cpu_count() or 1, len(found))
    if workers <= 1 or sum(_size(path) for path, _, _ in found) < 64 << 20:
        return list(bar(map(one, found)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(bar(pool.map(one, found)))


def _interval() -> float:
    import sys

    return 0.5 if sys.stderr.isatty() else 10.0


def _size(path: str) -> int:
    return os.path.getsize(path) if "://" not in path else 64 << 20


def _describe(found: tuple[str, str, bool], words: str) -> WarcFile:
    path, shown, local = found
    counts: Counter[str] = Counter()
    records = broken = 0
    for record in read_records(path, shown, counts):
        records += 1
        broken += isinstance(record, BrokenRecord)
    size, sha256 = hash_file(path)
    return WarcFile(shown, size, sha256, records, broken, dict(sorted(counts.items())), local, words)


def hash_file(path: str | Path) -> tuple[int, str]:
    """A file's size in bytes and its sha256, local or by URL."""
    digest, size = hashlib.sha256(), 0
    with open_archive(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def write_manifest(folder: Path, files: list[WarcFile]) -> None:
    """One JSON object a line, in the files' order, by rename."""
    partial_path = folder / (MANIFEST + ".partial")
    partial_path.write_text("".join(json.dumps(asdict(f), ensure_ascii=False) + "\n" for f in files), "utf-8")
    partial_path.replace(folder / MANIFEST)


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
