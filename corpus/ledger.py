"""The ledger: one row for every record of a crawl, with its outcome, the reason, and the threshold that decided.

Also the schema of the documents, the check that no record is lost, and the look-up of a URL's rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.errors import MissingError, RunError
from corpus.urls import canonical_url, host_of

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

MANY_HOSTS = 10_000


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


def _parts(folders: Path | str | Sequence[Path | str], kind: str) -> list[str]:
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

    return ds.dataset(_parts(folders, "ledger"), schema=LEDGER_SCHEMA, format="parquet")


def document_dataset(folders: Path | str | Sequence[Path | str]) -> ds.Dataset:
    """The documents of one or several cleaned corpora as one dataset, nothing read yet."""
    import pyarrow.dataset as ds

    return ds.dataset(_parts(folders, "documents"), schema=DOCUMENT_SCHEMA, format="parquet")


def read_ledger(folder: Path | str) -> pa.Table:
    """All rows of a cleaned corpus' ledger, in the order of files and records."""
    return ledger_dataset(folder).to_table()


def find_rows(
    folders: Path | str | Sequence[Path | str], column: str, wanted: Iterable[str], kind: str = "ledger"
) -> list[dict[str, Any]]:
    """The rows whose `column` is one of `wanted`, in the order of files and records.

    Reads that one column, file by file in threads, and the other columns only of the row groups with a hit: a
    processor second for 4 million rows (docs/corpus-report.md).
    """
    from concurrent.futures import ThreadPoolExecutor

    values = _strings(sorted(set(wanted)))

    def search(part: str) -> list[dict[str, Any]]:
        found = []
        with pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                hits = pc.is_in(file.read_row_group(group, [column], False)[column], value_set=values)
                if pc.any(hits).as_py():
                    found += file.read_row_group(group).filter(hits).to_pylist()
        return found

    with ThreadPoolExecutor() as pool:
        return [row for rows in pool.map(search, _parts(folders, kind)) for row in rows]


def _strings(words: Sequence[str]) -> pa.StringArray:
    """As pa.array, which loads pandas first: a quarter of a second."""
    coded = [word.encode() for word in words]
    offsets = array("i", accumulate(map(len, coded), initial=0))
    return pa.StringArray.from_buffers(len(coded), pa.py_buffer(offsets), pa.py_buffer(b"".join(coded)))


def rows_for_url(folders: Path | str | Sequence[Path | str], url: str) -> list[dict[str, Any]]:
    """The ledger's rows of a URL, of a record id (urn:…), or of a whole host when given a bare host name.

    A URL that is not in the ledger as written is compared without scheme, 'www.', last slash and tracking fields.
    """
    key = url.strip().strip("<>")
    if key.startswith("urn:"):
        return find_rows(folders, "record_id", [key])
    if is_host(key):
        return find_rows(folders, "host", [key.lower()])
    rows = find_rows(folders, "url", [key])
    return rows or [row for row in _same_host(folders, key) if _loose_form(row["url"]) == _loose_form(key)]


def near_urls(folders: Path | str | Sequence[Path | str], url: str, most: int = 5) -> list[str]:
    """Suggestions for a URL that is not in the ledger: similar URLs of its host, or similar hosts."""
    from difflib import get_close_matches

    key = url.strip()
    pages = sorted({row["url"] for row in _same_host(folders, key)})
    if pages:
        return get_close_matches(key, pages, most, cutoff=0.3) or pages[:most]
    columns = (pq.read_table(part, columns=["host"])["host"] for part in _parts(folders, "ledger"))
    hosts = sorted({host for column in columns for host in pc.unique(column).to_pylist() if host})
    wanted = _host(key)
    if len(hosts) > MANY_HOSTS:  # comparing all would take a minute for each million
        hosts = [host for host in hosts if host[:6] == wanted[:6]][:MANY_HOSTS]
    return get_close_matches(wanted, hosts, most, cutoff=0.7)


def is_host(text: str) -> bool:
    """Whether this is a bare host name and not a URL."""
    return "/" not in text and ":" not in text


def _host(url: str) -> str:
    return host_of(url if "://" in url else f"//{url}")


def _loose_form(url: str) -> str:
    return (
        canonical_url(url if "://" in url else f"//{url}").removeprefix("//").removeprefix("www.").rstrip("/")
    )


def _same_host(folders: Path | str | Sequence[Path | str], url: str) -> list[dict[str, Any]]:
    host = _host(url).removeprefix("www.")
    return find_rows(folders, "host", [host, f"www.{host}"]) if host else []


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
