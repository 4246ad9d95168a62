"""The ledger: one row for every record of a crawl, with its outcome, the reason, and the threshold that decided.

Also the schema of the documents, and the check that no record is lost. Rows of a URL are found by ledger_search.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.errors import MissingError, RunError

if TYPE_CHECKING:
    import pyarrow.dataset as ds

KEPT, DROPPED, FAILED = "kept", "dropped", "failed"
OUTCOMES = (KEPT, DROPPED, FAILED)
# In the order in which a record passes them.
STAGES = ("read", "url", "extraction", "language", "quality", "dedup", "classifier", "pii")

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("host", pa.string(), nullable=False),
        pa.field("crawl", pa.string(), nullable=False),
        pa.field("warc_file", pa.string(), nullable=False),
        pa.field("warc_offset", pa.int64(), nullable=False),
        pa.field("warc_length", pa.int64(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field(
            "stage", pa.string()
        ),  # that decided or changed it; null for a kept record that no stage changed
        pa.field("rule", pa.string()),
        pa.field("value", pa.float64()),  # that the rule measured
        pa.field("threshold", pa.float64()),  # that the value was compared with
        pa.field("detail", pa.string()),  # a language, a domain, a sentence on what is broken
        pa.field("duplicate_of", pa.string()),  # record_id of the kept page
        pa.field("config_hash", pa.string(), nullable=False),
        pa.field("quality", pa.float64()),  # the quality classifier's score, where it scored the page
    ]
)
DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("host", pa.string(), nullable=False),
        pa.field("crawl", pa.string(), nullable=False),
        pa.field("date", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("language_score", pa.float64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("n_bytes", pa.int64(), nullable=False),  # of the text in UTF-8
        pa.field("sha256", pa.string(), nullable=False),  # of the text in UTF-8
    ]
)


class ConservationError(RunError):
    """The records of a crawl are not kept + dropped + failed."""


def write_parquet(rows: pa.Table | list[dict[str, Any]], schema: pa.Schema, path: Path) -> None:
    """Write a Parquet file whose bytes depend on nothing but the rows and the library's version."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(
        table.cast(schema).combine_chunks(),
        path,
        compression="zstd",
        compression_level=3,
        row_group_size=16_384,
        version="2.6",
        data_page_version="1.0",
        write_statistics=True,
        store_schema=False,
    )


def _folders(folders: Path | str | Sequence[Path | str]) -> list[Path]:
    many = [folders] if isinstance(folders, Path | str) else folders
    return [Path(folder) for folder in many]


def part_files(folders: Path | str | Sequence[Path | str], kind: str) -> list[str]:
    """The Parquet files of one kind ("ledger", "documents") of cleaned corpora, in order. Raises MissingError."""
    parts: list[str] = []
    for folder in _folders(folders):
        inner = folder / kind
        found = sorted((inner if inner.is_dir() else folder).glob("*.parquet"))
        if not found:
            raise MissingError(
                f"{folder} holds no {kind}/*.parquet. Make it with: stemma materialize cleaned_corpus"
            )
        parts += map(str, found)
    return parts


def ledger_dataset(folders: Path | str | Sequence[Path | str]) -> ds.Dataset:
    """The ledgers of one or several cleaned corpora as one dataset, nothing read yet."""
    import pyarrow.dataset as ds  # loads pandas, a third of a second: only where it is needed

    return ds.dataset(part_files(folders, "ledger"), schema=LEDGER_SCHEMA, format="parquet")


def document_dataset(folders: Path | str | Sequence[Path | str]) -> ds.Dataset:
    """The documents of one or several cleaned corpora as one dataset, nothing read yet."""
    import pyarrow.dataset as ds

    return ds.dataset(part_files(folders, "documents"), schema=DOCUMENT_SCHEMA, format="parquet")


def read_ledger(folder: Path | str) -> pa.Table:
    """All rows of a cleaned corpus' ledger, in the order of files and records."""
    return ledger_dataset(folder).to_table()


def check_conservation(folder: Path | str, records: int | None = None) -> dict[str, int]:
    """Count the outcomes of a cleaned corpus: {'records', 'kept', 'dropped', 'failed'}.

    Raises ConservationError where the number of rows is not that of the crawl's records (`records`, else from
    stats.json), where an outcome is unknown or a drop has no reason, or where the kept records are not those of the
    documents.
    """
    import json

    columns = ["record_id", "outcome", "stage", "rule"]
    table = ledger_dataset(folder).to_table(columns=columns)
    counts = {row["values"]: row["counts"] for row in pc.value_counts(table["outcome"]).to_pylist()}
    unknown = set(counts) - set(OUTCOMES)
    if unknown:
        raise ConservationError(f"{folder}: the ledger has outcomes that do not exist: {sorted(unknown)}.")
    stats = Path(folder) / "stats.json"
    if records is None and stats.is_file():
        records = json.loads(stats.read_text())["records"]
    if records is not None and records != table.num_rows:
        raise ConservationError(
            f"{folder}: {records:,} records came in, but the ledger has {table.num_rows:,} rows."
        )
    lost = table.filter(pc.and_(pc.not_equal(table["outcome"], KEPT), pc.is_null(table["rule"])))
    if lost.num_rows:
        raise ConservationError(f"{folder}: {lost.num_rows:,} records were dropped without a rule.")
    kept = sorted(table.filter(pc.equal(table["outcome"], KEPT))["record_id"].to_pylist())
    documents = sorted(document_dataset(folder).to_table(columns=["record_id"])["record_id"].to_pylist())
    if kept != documents:
        raise ConservationError(
            f"{folder}: the ledger keeps {len(kept):,} records, the documents are {len(documents):,}, "
            f"and {len(set(kept) ^ set(documents)):,} stand in only one of the two."
        )
    return {"records": table.num_rows} | {outcome: counts.get(outcome, 0) for outcome in OUTCOMES}


def count_rows(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], int]:
    """The number of rows for each (stage, rule, outcome)."""
    counts: dict[tuple[str, str, str], int] = {}
    for row in rows:
        key = (row["stage"] or "", row["rule"] or "", row["outcome"])
        counts[key] = counts.get(key, 0) + 1
    return counts
