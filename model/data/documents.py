"""The documents that training reads: those of the cleaned corpora, except those that the training set excludes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.errors import ConfigError


def document_files(corpora: Sequence[Path]) -> list[Path]:
    """The Parquet files of cleaned corpora, by corpus name, then file name. Raises ConfigError for a corpus without."""
    files = []
    for corpus in sorted(map(Path, corpora), key=lambda c: c.name):
        found = sorted((corpus / "documents").glob("*.parquet"))
        if not found:
            raise ConfigError(f"{corpus}/documents holds no Parquet file: it is not a cleaned corpus.")
        files += found
    return files


def left_out(training_set: Path | None) -> frozenset[tuple[str, str]]:
    """(crawl, record_id) of every document in the ledger of a training set; empty without a training set."""
    import pyarrow.dataset as ds

    files = sorted((training_set / "ledger").glob("*.parquet")) if training_set else []
    if not files:
        return frozenset()
    table = ds.dataset(list(map(str, files))).to_table(columns=["crawl", "record_id"])
    return frozenset(zip(table["crawl"].to_pylist(), table["record_id"].to_pylist(), strict=True))


def read_documents(
    corpora: Sequence[Path],
    columns: Sequence[str],
    training_set: Path | None = None,
    batch_size: int = 2000,
) -> Iterator[dict[str, list[Any]]]:
    """Batches of up to `batch_size` documents, column name -> values, in the order of files and rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    excluded = left_out(training_set)
    keys = ["crawl", "record_id"] if excluded else []
    for path in document_files(corpora):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size, columns=list(dict.fromkeys([*columns, *keys]))):
                if excluded:
                    rows = zip(*(batch.column(key).to_pylist() for key in keys), strict=True)
                    batch = batch.filter(pa.array([row not in excluded for row in rows]))
                if batch.num_rows:
                    yield batch.select(list(columns)).to_pydict()
