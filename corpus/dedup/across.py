"""Deduplication of a crawl's units, also against cleaned corpora of older crawls; and of several cleaned corpora.

Older crawls are represented by their signature files alone. A page is never dropped in favour of one of a younger
crawl, so the result depends on the order of the crawls, and a new crawl changes nothing in older corpora.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.errors import MissingError
from core.files import atomic_folder
from corpus import ledger
from corpus.config import CleanConfig
from corpus.dedup.duplicates import RULES, Duplicates, find_duplicates
from corpus.dedup.page_table import Crawls
from corpus.dedup.signatures import NEAR, SignatureFiles

DUPLICATES_SCHEMA = pa.schema(
    [
        pa.field("candidate", pa.int64(), nullable=False),  # its row in the unit's documents and signatures
        pa.field("step", pa.uint8(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64(), nullable=False),
        pa.field("duplicate_of", pa.string(), nullable=False),
        pa.field("crawl", pa.string()),  # of the kept page, where it is another crawl
    ]
)


@dataclass(frozen=True)
class OlderCrawl:
    """The cleaned corpus of an older crawl."""

    crawl: str
    signatures: list[Path]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a candidate is dropped: a row of DUPLICATES_SCHEMA."""

    step: int
    value: float | None
    threshold: float
    duplicate_of: str
    crawl: str | None

    def ledger_columns(self) -> dict[str, Any]:
        """The columns of LEDGER_SCHEMA that say it."""
        columns: dict[str, Any] = {"rule": RULES[self.step], "value": self.value, "threshold": self.threshold}
        return columns | {"duplicate_of": self.duplicate_of} | _other_crawl_detail(self.crawl)


def _other_crawl_detail(crawl: str | None) -> dict[str, str]:
    """The ledger's `detail` of a duplicate whose kept page is in another crawl."""
    return {} if crawl is None else {"detail": f"of crawl {crawl}"}


def part_name(number: int) -> str:
    """File name of a corpus' part: the same in documents/, ledger/ and signatures/."""
    return f"{number:05d}.parquet"


def read_older_crawl(folder: Path, config: CleanConfig, crawl: str | None = None) -> OlderCrawl:
    """The cleaned corpus in a folder; its name is `crawl`, else that in its stats.json.

    Raises MissingError where the folder holds no signatures, DataError where these were made with other settings.
    """
    files = sorted((Path(folder) / "signatures").glob("*.parquet"))
    if not files:
        raise MissingError(
            f"{folder} holds no signatures/*.parquet, so nothing can be compared with it. Clean that crawl with this "
            "version of Stemma, which writes them."
        )
    SignatureFiles(files, config)
    stats = Path(folder) / "stats.json"
    named = json.loads(stats.read_text())["crawl"] if crawl is None and stats.is_file() else None
    return OlderCrawl(crawl or named or Path(folder).name, files)


def drop_duplicates(
    units: Sequence[Path], config: CleanConfig, out: Path, older: Sequence[OlderCrawl] = ()
) -> None:
    """Write a file of DUPLICATES_SCHEMA for each finished unit: its duplicates of pages of any unit or older crawl."""
    files = [each.signatures for each in older] + [[unit / "signatures.parquet" for unit in units]]
    pages, crawls = _open_signatures(files, config, fixed=len(older), within=True)
    shutil.rmtree(out, ignore_errors=True)
    found = find_duplicates(pages, config, out / "scratch", crawls)
    names = [*(each.crawl for each in older), None]
    for number, (first, end) in enumerate(pages.ranges[len(pages.paths) - len(units) :]):
        low, high = np.searchsorted(found.pages, (first, end))
        columns = {
            "candidate": found.pages[low:high] - first,
            "step": found.step[low:high],
            "value": _measured(found)[low:high],
            "threshold": _thresholds(found, config)[low:high],
            "duplicate_of": found.kept_ids[low:high].to_pylist(),
            "crawl": [names[crawl] for crawl in found.crawl[low:high].tolist()],
        }
        table = pa.table({name: pa.array(column) for name, column in columns.items()}).cast(DUPLICATES_SCHEMA)
        pq.write_table(table, out / part_name(number))


def read_duplicates(path: Path) -> dict[int, Reason]:
    """Candidate -> why it is dropped, of a file that drop_duplicates wrote."""
    rows = pq.read_table(path).to_pylist()
    return {row.pop("candidate"): Reason(**row) for row in rows}


def _open_signatures(
    files: list[list[Path]], config: CleanConfig, fixed: int, within: bool
) -> tuple[SignatureFiles, Crawls]:
    pages = SignatureFiles([file for crawl in files for file in crawl], config)
    counts = np.cumsum([0, *(len(crawl) for crawl in files)])
    firsts = np.array([first for first, _ in pages.ranges] + [pages.n_pages])
    return pages, Crawls(firsts[counts], fixed, within)


def _measured(found: Duplicates) -> list[float | None]:
    return [None if math.isnan(value) else round(value, 6) for value in found.value.tolist()]


def _thresholds(found: Duplicates, config: CleanConfig) -> np.ndarray:
    return np.where(found.step == NEAR, config.jaccard, 1.0)


def find_across(
    folders: Sequence[tuple[str, Path]],
    out: Path,
    config: CleanConfig | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Which kept documents of each cleaned corpus are duplicates of older ones? `folders`: (crawl, folder), oldest
    first.

    Writes out/ledger/NNNNN.parquet, one file a crawl that loses documents, with a row of LEDGER_SCHEMA for each of
    them, and out/stats.json, which is returned: crawls, documents and dropped by rule. `out` appears whole, by
    rename. The corpora themselves are not changed; model.data.documents leaves those documents out.
    Raises MissingError or DataError where signatures are missing or were made with other settings.
    """
    config, out = config or CleanConfig(), Path(out)
    names = [crawl for crawl, _ in folders]
    files = [read_older_crawl(folder, config, crawl).signatures for crawl, folder in folders]
    with atomic_folder(out) as partial:
        (partial / "ledger").mkdir()
        pages, crawls = _open_signatures(files, config, fixed=1, within=False)
        found = find_duplicates(pages, config, partial / "scratch", crawls, log)
        by_crawl: dict[str, dict[str, Any]] = {}
        total = 0
        for number, (crawl, folder) in enumerate(folders):
            low, high = np.searchsorted(found.pages, crawls.starts[number : number + 2])
            part = _ledger_rows(found, slice(low, high), pages, names, folder, config)
            if part.num_rows:
                ledger.write_parquet(part, ledger.LEDGER_SCHEMA, partial / "ledger" / part_name(number))
            documents = ledger.document_dataset(folder).count_rows()
            rules = pc.value_counts(part["rule"]).to_pylist()
            by_rule = {
                each["values"]: each["counts"] for each in sorted(rules, key=lambda each: each["values"])
            }
            by_crawl[crawl] = {"documents": documents, "dropped": int(high - low), "rules": by_rule}
            total += documents
        stats = {"crawls": by_crawl, "documents": total, "dropped": len(found.pages)}
        (partial / "stats.json").write_text(json.dumps(stats, indent=1, ensure_ascii=False) + "\n")
    return stats


def _ledger_rows(
    found: Duplicates,
    here: slice,
    pages: SignatureFiles,
    crawls: list[str],
    folder: Path,
    config: CleanConfig,
) -> pa.Table:
    """The ledger's rows of a corpus' dropped documents, changed to say so, in the ledger's order."""
    ids = pages.strings("record_id", found.pages[here]) if here.stop > here.start else []
    rules = [RULES[step] for step in found.step[here].tolist()]
    reasons = {
        record_id: {
            "outcome": ledger.DROPPED,
            "stage": "dedup",
            "rule": rule,
            "value": value,
            "threshold": threshold,
            "duplicate_of": kept,
            **_other_crawl_detail(crawls[crawl]),
            "config_hash": config.hash,
        }
        for record_id, rule, value, threshold, kept, crawl in zip(
            ids,
            rules,
            _measured(found)[here],
            _thresholds(found, config)[here].tolist(),
            found.kept_ids[here].to_pylist(),
            found.crawl[here].tolist(),
            strict=True,
        )
    }
    wanted = pc.field("record_id").isin(pa.array(ids, pa.string())) & (pc.field("outcome") == ledger.KEPT)
    rows = ledger.ledger_dataset(folder).to_table(filter=wanted).to_pylist() if ids else []
    return pa.Table.from_pylist(
        [row | reasons[row["record_id"]] for row in rows], schema=ledger.LEDGER_SCHEMA
    )
