"""Cleaning a crawl, compared with datatrove's FineWeb pipeline: documents per CPU-second by stage, and what each keeps.

    python -m benchmarks.corpus [WARC…]          without files: the real pages beside the checkout, else the sample

Both sides read the same files and write their corpus to disk; CPU-seconds are those of the whole process trees,
including start-up, which is reported separately: for ours it is what a crawl of one page a file takes, for datatrove
what its imports and block lists take. datatrove gets an environment of its own (--environment), created on the first
run. Two populations: English kept (FineWeb's setting), and every language kept. Per-stage figures are CPU-seconds too:
measured in one process for ours, by datatrove's own timers for datatrove. The lower bound is decompression and HTML
parsing alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import corpus.clean
import corpus.ledger
import corpus.publish
import corpus.unit
from corpus.clean import CleanConfig, clean_crawl
from corpus.language import model_path
from corpus.ledger import read_ledger

ROOT = Path(__file__).resolve().parent.parent
DATATROVE = "0.10.1"
# Its English rules tokenise with spaCy; trafilatura 1.11, which it requires, needs lxml's old cleaner.
REQUIREMENTS = (f"datatrove[io,processing]=={DATATROVE}", "spacy>=3.8,<4", "lxml_html_clean")
POPULATIONS = {"English kept": ("en",), "every language kept": ()}
# What is timed for the table of our stages: (stage, module or class, name in it).
STEPS = (
    ("urls", corpus.unit.UrlFilter, "reject"),
    ("language", corpus.unit, "first_look"),
    ("extraction", corpus.unit, "_main_text"),
    ("language", corpus.unit, "identify"),
    ("words", corpus.unit.Words, "of"),
    ("rules", corpus.unit, "judge"),
    ("signatures", corpus.unit, "sign"),
    ("Parquet files", corpus.unit, "write_signatures"),
    ("Parquet files", corpus.ledger, "write_parquet"),
    ("duplicates", corpus.clean, "drop_duplicates"),
    ("personal data", corpus.publish, "remove_pii"),
)

# Stages that both sides have: substrings of the names of their steps.
STAGES = {
    "reading": ("reading", "READER: 🕷"),
    "addresses": ("urls", "Url-filter"),
    "extraction": ("extraction", "Trafilatura"),
    "language": ("language", "Language ID"),
    "words and rules": ("words", "rules", "Gopher", "C4", "FineWeb"),
    "signatures and duplicates": ("signatures", "duplicates", "MinHash"),
    "personal data": ("personal data", "PII"),
    "files and everything else": ("Parquet", "everything else", "WRITER", "READER: 🐿"),
}


def environment(folder: Path) -> Path:
    """The Python of an environment with datatrove, created where it is missing."""
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        print(f"creating an environment for datatrove {DATATROVE} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        (folder / "complete").touch()
    return python


def cpu_of(command: list[str], log: Path) -> float:
    """Run a command; CPU-seconds of it and all its descendants."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} … failed:\n{log.read_text()[-3000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def datatrove(python: Path, warcs: list[str], languages: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Run datatrove; {cpu, fixed, steps, kept: ids before deduplication, dropped: id -> stage, reason}."""
    script = str(ROOT / "benchmarks" / "corpus_datatrove.py")
    command = [str(python), script, str(out), str(model_path()), ",".join(languages), *warcs]
    cpu = cpu_of(command, out.with_suffix(".log"))
    result = json.loads((out / "result.json").read_text())
    kept = set()
    for part in (out / "filtered").glob("*.jsonl.gz"):
        with gzip.open(part, "rt") as lines:
            kept |= {json.loads(line)["id"].strip("<>") for line in lines}
    dropped = {record.strip("<>"): reason for record, reason in result["dropped"].items()}
    return {"cpu": cpu, "fixed": result["fixed"], "steps": result["steps"], "kept": kept, "dropped": dropped}


def ours(warcs: list[str], languages: tuple[str, ...], profile: str, out: Path) -> dict[str, Any]:
    """Clean the files as a user would; {cpu, records, kept: ids before deduplication, dropped: id -> stage, rule}."""
    command = [sys.executable, "-m", "corpus", *warcs, "--out", str(out), "--profile", profile]
    cpu = cpu_of([*command, "--languages", ",".join(languages)], out.with_suffix(".log"))
    rows = read_ledger(out).select(["record_id", "outcome", "stage", "rule"]).to_pylist()
    kept = {row["record_id"] for row in rows if row["outcome"] == "kept" or row["stage"] == "dedup"}
    dropped = {row["record_id"]: (row["stage"], row["rule"]) for row in rows if row["record_id"] not in kept}
    return {"cpu": cpu, "records": len(rows), "kept": kept, "dropped": dropped}


def tiny_crawl(files: int, folder: Path) -> list[str]:
    """As many archives, of one short page each: cleaning them measures start-up."""
    from corpus.warc_writer import WarcWriter

    folder.mkdir()
    page = "".join(
        f"<p>The river number {n} runs through the valley and past the old town.</p>" for n in range(40)
    )
    paths = [folder / f"{number}.warc.gz" for number in range(files)]
    for number, path in enumerate(paths):
        block = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><body>{page}</body></html>".encode()
        with WarcWriter(path) as file:
            about = (f"urn:uuid:{number}", "2026-01-01T00:00:00Z", block)
            file.write("response", *about, url=f"https://tiny.example/{number}")
    return list(map(str, paths))


def timed(function: Callable, stage: str, into: Counter) -> Callable:
    """The function, with the CPU-seconds of it and its callees added to its stage."""

    def call(*args: Any, **named: Any) -> Any:
        started = time.process_time()
        try:
            return function(*args, **named)
        finally:
            into[stage] += time.process_time() - started

    return call


def timed_reading(function: Callable, into: Counter) -> Callable:
    """The generator of records, with the CPU-seconds of reading them added to "reading"."""

    def call(*args: Any, **named: Any) -> Iterator:
        records = function(*args, **named)
        while True:
            started = time.process_time()
            record = next(records, None)
            into["reading"] += time.process_time() - started
            if record is None:
                return
            yield record

    return call


def stages(warcs: list[str], languages: tuple[str, ...], profile: str, out: Path) -> dict[str, float]:
    """CPU-seconds of each of our stages, run in this process."""
    spent: Counter = Counter()
    corpus.unit.read_records = timed_reading(corpus.unit.read_records, spent)
    for stage, module, name in STEPS:
        setattr(module, name, timed(getattr(module, name), stage, spent))
    started = time.process_time()
    config = CleanConfig(languages=languages, profile=profile)
    clean_crawl([(Path(warc).name, warc) for warc in warcs], out, out.with_suffix(".work"), config, workers=0)
    total = time.process_time() - started
    return {**spent, "everything else": total - sum(spent.values())}


def lower_bound(warcs: list[str]) -> tuple[float, float, int]:
    """CPU-seconds of decompression and of HTML parsing alone, and pages: no pipeline that parses can be faster."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType
    from resiliparse.parse.html import HTMLTree

    reading = parsing = 0.0
    pages, mark = 0, time.process_time()
    for warc in warcs:
        with open(warc, "rb") as file:
            for record in ArchiveIterator(file, record_types=WarcRecordType.response):
                page = record.reader.read()
                read = time.process_time()
                HTMLTree.parse_from_bytes(page, "utf-8")
                reading, parsing = reading + read - mark, parsing + time.process_time() - read
                pages, mark = pages + 1, time.process_time()
    return reading, parsing, pages


def default_files(folder: Path) -> list[str]:
    """The real pages if they are beside the checkout, else the built-in sample."""
    real = sorted((ROOT.parent / "shared" / "data" / "crawl").glob("*.warc.gz"))
    if not real:
        from corpus.sample_web.build import build_sample

        build_sample(folder / "sample", pages=3000)
        real = sorted((folder / "sample").glob("*.warc.gz"))
    return [str(path) for path in real]


def print_agreement(peer: dict[str, Any], mine: dict[str, Any], profile: str) -> None:
    """How much of what each side keeps the other keeps too, and why the rest is dropped.

    Each side has its own block lists of addresses: pages that either drops by its address are left out.
    """
    refused = {record for side in (peer, mine) for record, why in side["dropped"].items() if why[0] == "url"}
    peer, mine = ({**side, "kept": side["kept"] - refused} for side in (peer, mine))
    both = peer["kept"] & mine["kept"]
    print(f"  of {len(peer['kept']):,} that datatrove keeps, {profile} keeps {len(both):,} "
          f"({len(both) / max(1, len(peer['kept'])):.1%}); of {len(mine['kept']):,} that {profile} keeps, datatrove "
          f"keeps {len(both) / max(1, len(mine['kept'])):.1%} ({len(refused)} left out by address)")  # fmt: skip
    unread = ("read", "not read (charset, type)")
    for title, ids, why in (
        (f"{profile} drops", peer["kept"] - both, mine["dropped"]),
        ("datatrove drops", mine["kept"] - both, peer["dropped"]),
    ):
        reasons = Counter(": ".join(why.get(record, unread)) for record in ids).most_common()
        print(f"    {title}: {', '.join(f'{reason} {count}' for reason, count in reasons) or 'none'}")


def compare(python: Path, warcs: list[str], languages: tuple[str, ...], repeat: int, folder: Path) -> dict:
    """Run both sides on one population and print the tables; return datatrove's result."""
    runs: dict[str, list[dict[str, Any]]] = {"fast": [], "faithful": []}
    peer: dict[str, Any] = {}
    for number in range(repeat):
        for profile, results in runs.items():
            results.append(ours(warcs, languages, profile, folder / f"{profile}-{number}"))
        peer = peer or datatrove(python, warcs, languages, folder / "datatrove")
    tiny = tiny_crawl(len(warcs), folder / "tiny")
    start_up = {name: ours(tiny, languages, name, folder / f"{name}-start")["cpu"] for name in runs}
    spent = {name: sum(result["cpu"] for result in results) / len(results) for name, results in runs.items()}
    rows = [(f"datatrove {DATATROVE}", peer["cpu"], peer["fixed"], len(peer["kept"]))]
    rows += [(name, spent[name], start_up[name], len(results[0]["kept"])) for name, results in runs.items()]
    pages, (_, theirs, theirs_fixed, _) = runs["fast"][0]["records"], rows[0]
    heads = ("CPU-seconds", "start-up", "pages a CPU-second", "ratio", "without start-up", "kept")
    print(f"  {'':20}" + "".join(f"{head:>{len(head) + 3}}" for head in heads))
    for name, cpu, fixed, kept in rows:
        ratios = (theirs / cpu, (theirs - theirs_fixed) / (cpu - fixed))
        print(
            f"  {name:20}{cpu:14.1f}{fixed:11.1f}{pages / cpu:21.1f}{ratios[0]:8.1f}{ratios[1]:17.1f}{kept:7,}"
        )
    for profile, results in runs.items():
        print_agreement(peer, results[0], profile)
    return peer


def print_stages(warcs: list[str], peers: dict[str, dict[str, Any]], folder: Path) -> None:
    """CPU-seconds by stage and population: datatrove's by its own timers, each profile of ours in a fresh process."""
    for title, languages in POPULATIONS.items():
        table = {"datatrove": by_stage(peers[title]["steps"])}
        table["datatrove"]["reading"] += (
            peers[title]["cpu"] - peers[title]["fixed"] - sum(table["datatrove"].values())
        )
        for profile in ("fast", "faithful"):
            out = folder / f"stages-{profile}-{len(languages)}"
            command = [sys.executable, __file__, "--stages-of", profile, "--languages", ",".join(languages)]
            done = subprocess.run(
                [*command, "--out", str(out), *warcs], capture_output=True, text=True, check=True
            )
            table[profile] = by_stage(json.loads(done.stdout.splitlines()[-1]).items())
        print(f"{title}, CPU-seconds by stage, without start-up; ours in one process")
        print(f"  {'':28}{'datatrove':>10}{'fast':>8}{'ratio':>8}{'faithful':>10}{'ratio':>8}")
        for stage in (*STAGES, "total"):
            theirs, fast, faithful = (
                sum(t.values()) if stage == "total" else t[stage] for t in table.values()
            )
            print(
                f"  {stage:28}{theirs:10.2f}{fast:8.2f}{theirs / fast:8.1f}{faithful:10.2f}{theirs / faithful:8.1f}"
            )


def by_stage(steps: Iterable[tuple[str, float]]) -> Counter:
    """CPU-seconds of one side's steps, by the stages that both have."""
    spent: Counter = Counter()
    for name, seconds in steps:
        spent[next(stage for stage, parts in STAGES.items() if any(part in name for part in parts))] += (
            seconds
        )
    return spent


def main() -> None:
    """Run both sides on every population and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("warcs", nargs="*")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--environment", type=Path, default=cache / "stemma" / f"datatrove-{DATATROVE}")
    parser.add_argument(
        "--repeat", type=int, default=2, help="runs of ours per population; their mean is reported"
    )
    parser.add_argument("--stages-of", help=argparse.SUPPRESS)
    parser.add_argument("--languages", default="en", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stages_of:
        languages = tuple(code for code in options.languages.split(",") if code)
        print(json.dumps(stages(options.warcs, languages, options.stages_of, options.out)))
        return
    sys.stdout.reconfigure(line_buffering=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warcs = [str(Path(warc).resolve()) for warc in options.warcs] or default_files(folder)
        python = environment(options.environment)
        peers = {}
        for title, languages in POPULATIONS.items():
            print(f"{title}: {len(warcs)} files, {os.cpu_count()} cores")
            here = folder / (languages[0] if languages else "all")
            here.mkdir()
            peers[title] = compare(python, warcs, languages, options.repeat, here)
        print_stages(warcs, peers, folder)
        reading, parsing, pages = lower_bound(warcs)
        print(f"the lower bound: {pages / (reading + parsing):.0f} pages a CPU-second "
              f"(decompression {reading:.2f} s, HTML parsing {parsing:.2f} s)")  # fmt: skip


if __name__ == "__main__":
    main()
