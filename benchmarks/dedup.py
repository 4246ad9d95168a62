"""How deduplication scales: synthetic signatures with planted near-duplicates, up to 20 million pages.

    python -m benchmarks.dedup [--pages 1,2,5,10,20] [--memory 2048] [--scratch DIR]      millions of pages, MiB

Signature files are written as `stemma clean` writes them, except for the shingles, which are generated from the page's
number when they are read: reading, sorting, comparing and joining are the real code. A quarter of the pages are
copies: of text or address, near-duplicates on both sides of the threshold, some of a hundred pages that are copied
very often. Every size runs in a process of its own, whose peak of resident memory is reported; disk use is sampled
twice a second. Everything is removed afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from corpus.config import CleanConfig
from corpus.dedup.duplicates import NEAR, Duplicates, find_duplicates
from corpus.dedup.signatures import SignatureFiles, signature_schema, write_signatures

PAGES_A_FILE = 200_000
COPIES = 0.25  # of all pages
HOT, HOT_SHARE = (
    100,
    0.02,
)  # number of pages that are copied very often, and the share of copies that are of these
# Share of shingles that differ, each for as many copies: Jaccard 1, .96, .92, .85, .81, .75, .6
EDITS = np.array([0.0, 0.02, 0.04, 0.08, 0.10, 0.14, 0.25])
SAME_TEXT, SAME_URL = 0.2, 0.05  # shares of copies
CRAWL = 3_000_000_000  # pages of a Common Crawl dump


def mix(values: np.ndarray, salt: int) -> np.ndarray:
    """SplitMix64 of each value: uint64."""
    x = np.asarray(values).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15 * (salt + 1) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def share(values: np.ndarray, salt: int) -> np.ndarray:
    """A number in [0, 1) for each value."""
    return (mix(values, salt) >> np.uint64(11)).astype(float) / 2**53


class Web:
    """The properties of page number n, as functions of n: arrays in, arrays out."""

    def __init__(self, n_pages: int):
        self.n_pages = n_pages
        self.originals = int(n_pages * (1 - COPIES))

    def place(self, pages: np.ndarray) -> np.ndarray:
        """A permutation of the pages, so that copies are spread over all files: a bijection of 0 … n_pages - 1."""
        step = 2_654_435_761  # a prime: coprime to any number of pages here
        return (pages.astype(np.uint64) * np.uint64(step) % np.uint64(self.n_pages)).astype(np.int64)

    def original(self, pages: np.ndarray) -> np.ndarray:
        """The page that each is a copy of; originals are their own."""
        hot = share(pages, 1) < HOT_SHARE
        of = (mix(pages, 2) % np.where(hot, HOT, self.originals).astype(np.uint64)).astype(np.int64)
        return np.where(pages < self.originals, pages, of)

    def size(self, pages: np.ndarray) -> np.ndarray:
        """Number of shingles of each page: 150 to 449, as many as its original's."""
        return 150 + (mix(self.original(pages), 3) % np.uint64(300)).astype(np.int64)

    def edits(self, pages: np.ndarray) -> np.ndarray:
        """How many shingles differ from the original's."""
        kind = (mix(pages, 4) % np.uint64(len(EDITS))).astype(np.int64)
        n = np.round(EDITS[kind] * self.size(pages)).astype(np.int64)
        copied = (pages >= self.originals) & ~self.same_text(pages)
        return np.where(copied, n, 0)

    def same_text(self, pages: np.ndarray) -> np.ndarray:
        return (pages >= self.originals) & (share(pages, 5) < SAME_TEXT)

    def same_url(self, pages: np.ndarray) -> np.ndarray:
        return (pages >= self.originals) & (share(pages, 6) < SAME_URL)

    def jaccard(self, pages: np.ndarray) -> np.ndarray:
        """Similarity to the original."""
        n, k = self.size(pages), self.edits(pages)
        return (n - k) / (n + k)

    def bands(self, pages: np.ndarray, n_bands: int, n_rows: int) -> np.ndarray:
        """Band hashes: each equals the original's as often as MinHash's would, with probability J^rows."""
        numbers = pages[:, None] * n_bands + np.arange(n_bands)
        agrees = share(numbers, 7) < (self.jaccard(pages) ** n_rows)[:, None]
        theirs = self.original(pages)[:, None] * n_bands + np.arange(n_bands)
        return np.where(agrees, mix(theirs, 8), mix(numbers, 9))

    def shingles(self, pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of shingles of each page, the shingles of all pages, sorted within each page)."""
        n, k = self.size(pages), self.edits(pages)
        row = np.repeat(np.arange(len(pages)), n)
        place = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        # The differing shingles are a run, which may wrap around.
        first = (mix(pages, 10) % n.astype(np.uint64)).astype(np.int64)
        edited = (place - first[row]) % n[row] < k[row]
        source = np.where(edited, pages[row] + self.n_pages, self.original(pages)[row])
        value = mix(source * 512 + place, 11) >> np.uint64(33)
        key = np.sort((row.astype(np.uint64) << np.uint64(31)) | value)
        key = key[np.concatenate(([True], key[1:] != key[:-1]))]
        counts = np.bincount((key >> np.uint64(31)).astype(np.int64), minlength=len(pages))
        return counts, (key & np.uint64(0x7FFFFFFF)).astype(np.int32)


def write_web(web: Web, folder: Path, config: CleanConfig) -> list[Path]:
    """Write the signature files of all pages, with empty lists of shingles."""
    folder.mkdir(parents=True)
    schema, paths = signature_schema(config), []
    for first in range(0, web.n_pages, PAGES_A_FILE):
        pages = web.place(np.arange(first, min(first + PAGES_A_FILE, web.n_pages)))
        original, n = web.original(pages), len(pages)
        text = np.where(web.edits(pages) > 0, mix(pages, 12), mix(original, 12))
        bands = web.bands(pages, config.minhash_bands, config.minhash_rows).astype("<u8")
        width = 8 * config.minhash_bands
        ids = mix(pages, 13)
        columns = [
            pa.array([f"<urn:uuid:{i:08x}-0000-4000-8000-{i >> 20:012x}>" for i in ids.tolist()]),
            pa.array(web.size(pages) * 6),
            pa.array(np.where(web.same_url(pages), mix(original, 14), mix(pages, 14))),
            pa.array(text),
            pa.array(np.full(n, NEAR, dtype=np.uint8)),
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), n, [None, pa.py_buffer(bands.tobytes())]),
            pa.ListArray.from_arrays(np.zeros(n + 1, dtype=np.int32), pa.array([], pa.int32())),
            pa.nulls(n, pa.string()),
        ]
        paths.append(folder / f"{len(paths):05d}.parquet")
        write_signatures(pa.table(columns, schema=schema), paths[-1])
    return paths


class Synthetic(SignatureFiles):
    """Signature files whose shingles are generated when read. Counts pages and the processor time of generating."""

    def __init__(self, paths: list[Path], config: CleanConfig, web: Web):
        super().__init__(paths, config)
        self.web, self.made, self.seconds = web, 0, 0.0

    def shingles(self, pages: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for low in range(0, len(pages), 8192):
            started, piece = time.process_time(), pages[low : low + 8192]
            counts, flat = self.web.shingles(self.web.place(piece))
            self.made += len(piece)
            self.seconds += time.process_time() - started
            yield piece, counts, flat


def judge(web: Web, found: Duplicates, least: float) -> dict[str, float]:
    """Precision and recall of the pages that were dropped."""
    pages, kept = web.place(found.pages), web.place(found.kept)
    same = web.original(pages) == web.original(kept)
    # A page similar enough to its original is in one cluster with it, whichever of them is kept.
    right = same & (
        ((web.jaccard(pages) >= least) & (web.jaccard(kept) >= least))
        | web.same_url(pages)
        | web.same_url(kept)
    )
    copies = np.arange(web.originals, web.n_pages)
    planted = copies[(web.jaccard(copies) >= least) | web.same_url(copies)]
    # Where an original was dropped for its address, its copies correctly have nothing to be duplicates of.
    split = np.unique(web.original(copies[web.same_url(copies)]))
    whole = ~np.isin(web.original(planted), split)
    return {
        "planted": len(planted),
        "clusters": len(np.unique(web.original(planted))),
        "dropped": len(pages),
        "precision": float(right.mean()),
        "recall": float(right.sum() / len(planted)),
        "recall_without_addresses": float((~np.isin(web.original(pages), split)).sum() / whole.sum()),
    }


class DiskPeak(threading.Thread):
    """The peak of bytes in a folder, sampled twice a second."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.peak, self.done = folder, 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.done.wait(0.5):
            sizes = []
            for file in self.folder.rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    sizes.append(file.stat().st_size)
            self.peak = max(self.peak, sum(sizes))


def run_one(n_pages: int, memory: int, scratch: Path) -> dict:
    """Deduplicate n_pages that write_web wrote; return costs and scores."""
    config, web = CleanConfig(dedup_memory_mb=memory), Web(n_pages)
    paths = sorted((scratch / "signatures").glob("*.parquet"))
    signed = sum(path.stat().st_size for path in paths)
    steps, started, last = [], time.monotonic(), [time.process_time()]

    disk = DiskPeak(scratch / "work")

    def log(line: str) -> None:
        now = time.process_time()
        steps.append({"cpu_seconds": round(now - last[0], 1), "step": line})
        last[0] = now
        print(f"  {steps[-1]['cpu_seconds']:>8,.1f} s  {line}", file=sys.stderr, flush=True)

    pages, began = Synthetic(paths, config, web), time.process_time()
    found = find_duplicates(pages, config, scratch / "work", log=log)
    log(f"{len(found.pages):,} pages dropped")
    cpu = time.process_time() - began
    disk.done.set()
    return {
        "pages": n_pages,
        "memory_mb": memory,
        "cpu_seconds": round(cpu, 1),
        "making_up_shingles": round(pages.seconds, 1),
        "shingles_of_pages": pages.made,
        "wall_seconds": round(time.monotonic() - started, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "signatures_bytes": signed,
        "scratch_bytes": disk.peak,
        "steps": steps,
        **judge(web, found, config.jaccard),
    }


def main() -> None:
    """Run every size in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", default="1,2,5,10,20", help="millions of pages, by comma")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that deduplication may use")
    parser.add_argument("--scratch", type=Path, help="folder for files (default: a temporary one)")
    parser.add_argument("--step", choices=("write", "run"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        n_pages = int(float(options.pages) * 1e6)
        if options.step == "write":
            write_web(Web(n_pages), options.scratch / "signatures", CleanConfig())
        else:
            print(json.dumps(run_one(n_pages, options.memory, options.scratch)))
        return
    head = "millions  CPU s  pages/s  peak MB  planted     precision  recall"
    print(head, flush=True)
    for size in options.pages.split(","):
        scratch = Path(tempfile.mkdtemp(prefix="stemma-dedup-", dir=options.scratch))
        try:
            command = [sys.executable, __file__, "--pages", size, "--memory", str(options.memory)]
            command += ["--scratch", str(scratch), "--step"]
            subprocess.run([*command, "write"], check=True)
            done = subprocess.run([*command, "run"], stdout=subprocess.PIPE, text=True, check=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        one = json.loads(done.stdout)
        cpu = one["cpu_seconds"] - one["making_up_shingles"]
        print(
            f"{size:>8}  {cpu:>5,.0f}  {one['pages'] / cpu:>7,.0f}  {one['peak_mb']:>7,}  {one['planted']:>9,}  "
            f"{one['precision']:>10.5f}  {one['recall']:.5f}",
            flush=True,
        )
        print("  " + json.dumps(one), file=sys.stderr, flush=True)
    print(
        f"\nOne dump of {CRAWL:,} pages at the last rate: {CRAWL / one['pages'] * cpu / 3600:,.0f} core-hours"
    )


if __name__ == "__main__":
    main()
