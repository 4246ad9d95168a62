"""Random pages of every rule, with their texts read back from the crawl, by which people can check a rule.

Random, but the same on every machine: of the pages of a rule those are drawn whose record ids have the smallest hashes
under a seed, which is a uniform sample without replacement whatever the order of the files.
"""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from corpus import ledger
from corpus.rules.meaning import NOT_READ_AGAIN

DECIDES_NOTHING = "pages for people to look at"
PER_RULE = 20  # pages drawn of a rule
MAX_PARTS = 400  # ledger files read; of more, evenly spaced ones (a full Common Crawl dump has 90,000)
PAGE_SECONDS = 10  # of processor time, to read one page back
MEMORY = 8 << 30  # bytes of address space of the process that reads pages back
COLUMNS = ["record_id", "outcome", "stage", "rule", "value"]  # read of every row

Key = tuple[str, str, str]  # stage, rule, outcome
Heap = list[tuple[int, int, int]]  # minus the rank, number of the file, index of the row


@dataclass
class Drawn:
    """A rule in the ledger: how many pages it ended, the values it measured, and the pages drawn (ledger rows)."""

    stage: str
    rule: str
    outcome: str
    pages: int = 0
    values: Counter[float] = field(default_factory=Counter)  # value, rounded -> pages
    rows: list[dict[str, Any]] = field(default_factory=list)


def draw(folder: Path, per_rule: int = PER_RULE, seed: int = 0) -> tuple[list[Drawn], float]:
    """Every rule of a cleaned corpus that ended a page, with pages drawn; and the share of ledger files read.

    In the order of the stages, most frequent rule first. Kept pages come last, under the rule ''.
    """
    parts, read = _parts(folder, "ledger")
    found: dict[Key, Drawn] = {}
    heaps: dict[Key, Heap] = {}
    for number, part in enumerate(read):
        for place, row in enumerate(pq.ParquetFile(part).read(COLUMNS).to_pylist()):
            kept = row["outcome"] == ledger.KEPT
            key = ("", "", ledger.KEPT) if kept else (row["stage"], row["rule"], row["outcome"])
            seen = found.setdefault(key, Drawn(*key))
            seen.pages += 1
            if row["value"] is not None and not kept:
                seen.values[float(f"{row['value']:.3g}")] += 1
            heap, rank = heaps.setdefault(key, []), -_rank(row["record_id"], seed)
            if len(heap) < per_rule:
                heapq.heappush(heap, (rank, number, place))
            elif rank > heap[0][0]:
                heapq.heapreplace(heap, (rank, number, place))
    _load_rows(read, found, heaps)
    order = {stage: at for at, stage in enumerate((*ledger.STAGES, ""))}
    ordered = sorted(found.values(), key=lambda d: (order[d.stage], -d.pages, d.rule, d.outcome))
    return ordered, len(read) / max(1, len(parts))


def measured(folder: Path, rule: str) -> Counter[float] | None:
    """The values of a quality rule for every page in a wanted language, rounded: value -> pages.

    None where the corpus was cleaned without record_values.
    """
    values: Counter[float] = Counter()
    for part in _parts(folder, "values")[1]:
        file = pq.ParquetFile(part)
        if rule in file.schema_arrow.names:
            found = file.read([rule])[rule].to_pylist()
            values.update(float(f"{value:.3g}") for value in found if value is not None)
    return values or None


def _parts(folder: Path, kind: str) -> tuple[list[Path], list[Path]]:
    """All files of a kind, and those of them that are read."""
    parts = sorted((folder / kind).glob("*.parquet"))
    return parts, parts[:: -(-len(parts) // MAX_PARTS) or 1]


def _rank(record_id: str, seed: int) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(record_id.encode(), seed)


def _load_rows(parts: list[Path], found: dict[Key, Drawn], heaps: dict[Key, Heap]) -> None:
    """Fill `rows` of each rule with the whole ledger rows of the pages drawn, in the order of their hashes."""
    by_part: dict[int, list[tuple[int, int, Key]]] = {}
    for key, heap in heaps.items():
        for rank, number, place in heap:
            by_part.setdefault(number, []).append((rank, place, key))
    ranked: dict[Key, list[tuple[int, dict[str, Any]]]] = {}
    for number, wanted in by_part.items():
        table = pq.ParquetFile(parts[number]).read()
        for (rank, _, key), row in zip(
            wanted, table.take([p for _, p, _ in wanted]).to_pylist(), strict=True
        ):
            ranked.setdefault(key, []).append((rank, row))
    for key, rows in ranked.items():
        found[key].rows = [row for _, row in sorted(rows, key=lambda item: (-item[0], item[1]["record_id"]))]


def sources_of(root: Path, crawl: str) -> dict[str, str]:
    """A project's crawl files: path or URL by the file's name in the ledger.

    Raises FileNotFoundError where the crawl is not there.
    """
    from corpus.manifest import read_manifest

    folder = root / "data" / "raw_crawl" / crawl
    return {file.name: file.path(root, folder) for file in read_manifest(folder)}


def read_text(row: Mapping[str, Any], sources: Mapping[str, str | Path]) -> tuple[str, str]:
    """(main text, note) of a ledger row's page, read back from `sources` (the crawl's files by name).

    The note says why there is no text, or that the text is the whole page because there is no main text. Pages on
    which the parser failed are not read again.
    """
    from corpus.extraction.extract import extract_page, plain_text
    from corpus.warc import BrokenRecord, fetch_record

    if row["rule"] in NOT_READ_AGAIN:
        return "", "not read again: it stopped the parser"
    source = sources.get(row["warc_file"])
    if source is None or not row["warc_length"]:
        return "", "not in a file that is here"
    try:
        record = fetch_record(
            source, row["warc_file"], row["warc_offset"], row["warc_length"], row["record_id"]
        )
    except (OSError, LookupError) as error:
        return "", f"cannot be read again: {error}"
    if isinstance(record, BrokenRecord):
        return "", record.detail
    if record.kind not in ("html", "text"):
        return "", f"{record.kind}, {record.content_type or 'of no type'}, {len(record.payload):,} bytes"
    read = extract_page if record.kind == "html" else plain_text
    text = read(record.payload, record.http_charset).text
    return (text, "") if text else _whole_page(record.payload, record.http_charset)


def read_texts(
    rows: Sequence[Mapping[str, Any]], sources: Mapping[str, str | Path], most: int
) -> list[tuple[str, str]]:
    """read_text for many rows, each cut to `most` characters, in a process of its own.

    A page that was dropped by its address was never parsed before and may crash the parser; that loses its own text
    and no other page's. Raises RuntimeError for an error that no page caused.
    """
    needed = {row["warc_file"]: str(sources[row["warc_file"]]) for row in rows if row["warc_file"] in sources}
    names = ("record_id", "rule", "warc_file", "warc_offset", "warc_length")
    wanted = [{name: row[name] for name in names} for row in rows]
    found: list[tuple[str, str]] = []
    while len(found) < len(wanted):
        done = subprocess.run(
            [sys.executable, "-m", "corpus.report.samples"],
            input=json.dumps({"rows": wanted[len(found) :], "sources": needed, "most": most}),
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )
        found += [(text, note) for text, note in map(json.loads, done.stdout.splitlines())]
        if done.returncode > 0:  # an error in this module, not caused by a page
            raise RuntimeError(f"Reading pages back for the report failed: {done.stderr[-500:]}")
        if len(found) < len(wanted):
            found.append(("", "cannot be shown: it killed the parser, or used up its processor time"))
    return found


def main() -> None:
    """The child process of read_texts: JSON in, one JSON line a page out; PAGE_SECONDS of processor time a page."""
    import resource
    import time

    request = json.load(sys.stdin)
    _, most_memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, most_memory))
    for row in request["rows"]:
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + PAGE_SECONDS, hard))
        try:
            text, note = read_text(row, request["sources"])
        except Exception as error:  # of the parser, whatever it is
            text, note = "", f"cannot be shown: {type(error).__name__} in the parser"
        print(json.dumps([text[: request["most"]], note]), flush=True)


def _whole_page(payload: bytes, charset: str | None) -> tuple[str, str]:
    """All visible text of a page without main text."""
    from resiliparse.extract.html2text import extract_plain_text

    from corpus.extraction.charset import decode

    lines = extract_plain_text(decode(payload, charset), main_content=False, links=False).splitlines()
    text = " · ".join(line.strip(" •") for line in lines if line.strip(" •"))
    return (text, "no main text; this is the whole page") if text else ("", "nothing on it that can be read")


if __name__ == "__main__":
    main()
