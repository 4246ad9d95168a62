"""How fast is a crawl cleaned? Records per CPU-second and per second, everything included.

    python benchmarks/cleaning.py [WARC…]        without files: the built-in sample of 3,000 pages

Reading, extraction, language, rules, signatures, duplicates, personal data, Parquet and ledger all count.
CPU-seconds are this process' and its workers', start-up included.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from corpus.clean import CleanConfig, clean_crawl
from corpus.sources.sample import build_sample


def main(files: list[str]) -> None:
    """Clean the files once with one worker a core and print what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        if not files:
            build_sample(here / "sample", pages=3000)
            files = [str(path) for path in sorted((here / "sample").glob("*.warc.gz"))]
        before, started = sum(os.times()[:4]), time.monotonic()
        stats = clean_crawl([(f, f) for f in files], here / "out", here / "work", CleanConfig())
        cpu, wall = sum(os.times()[:4]) - before, time.monotonic() - started
        print(f"{stats.records:,} records, {stats.kept:,} kept, {os.cpu_count()} cores")
        print(f"{cpu:.1f} CPU-seconds ({stats.records / cpu:.0f} records each), {wall:.1f} seconds")


if __name__ == "__main__":
    main(sys.argv[1:])
