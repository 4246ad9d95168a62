"""What deduplication needs of a page, in files beside the documents, so that no page is read again.

A signature file holds one row for each page that reached deduplication: hashes of its canonical URL and of its text,
one hash for each band of its MinHash signature (Broder 1997), and its shingles, from which the exact similarity of two
pages is computed. Shingles are 31-bit hashes, sorted, as differences in Parquet (DELTA_BINARY_PACKED): about three
bytes each. At 31 bits two pages of 500 words share 0.0001 shingles by accident.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from core.errors import DataError
from corpus.config import CleanConfig
from corpus.urls import canonical_url
from corpus.words import Words

URL, TEXT, NEAR = 1, 2, 3  # the steps of deduplication, in order
ROW_GROUP = 4096  # pages; the unit of reading, some 7 MB of shingles
SHINGLE_SHIFT = np.uint64(33)  # from 64-bit hashes to 31-bit ones, which fit int32
PRIME = np.uint64(0x9E3779B97F4A7C15)


def signature_schema(config: CleanConfig) -> pa.Schema:
    """The columns of a signature file; its metadata has the settings that the hashes depend on."""
    fields = [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),  # of the text, in characters
        pa.field("url", pa.uint64(), nullable=False),
        pa.field("text", pa.uint64(), nullable=False),
        pa.field("reached", pa.uint8(), nullable=False),  # last step it took part in: URL, TEXT, NEAR; or 0
        pa.field("bands", pa.binary(8 * config.minhash_bands)),  # null where it did not reach NEAR
        pa.field("shingles", pa.list_(pa.int32())),  # likewise
        pa.field("duplicate_of", pa.string()),  # record_id of the kept page; null for a kept page
    ]
    return pa.schema(fields, metadata=_metadata(config))


def _metadata(config: CleanConfig) -> dict[bytes, bytes]:
    values = {name: getattr(config, name) for name in ("shingle_words", "minhash_bands", "minhash_rows")}
    values |= {"minhash_seed": config.minhash_seed, "signature_format": 1}
    return {name.encode(): str(value).encode() for name, value in values.items()}


def sign(pages: Sequence[tuple[str, str, Words]], config: CleanConfig) -> pa.Table:
    """Signatures of (record_id, url, words) triples, in signature_schema."""
    shingles = [words.shingles(config.shingle_words) for _, _, words in pages]
    short = [np.unique((s >> SHINGLE_SHIFT).astype(np.int32)) for s in shingles]
    offsets = np.concatenate(([0], np.cumsum([len(s) for s in short]))).astype(np.int32)
    flat = np.concatenate([np.zeros(0, dtype=np.int32), *short])
    bands = minhash_bands(shingles, config)
    width = 8 * config.minhash_bands
    columns = [
        pa.array([record_id for record_id, _, _ in pages], pa.string()),
        pa.array([len(words.text) for _, _, words in pages], pa.int64()),
        pa.array([url_hash(url) for _, url, _ in pages], pa.uint64()),
        pa.array([text_hash(words.text) for _, _, words in pages], pa.uint64()),
        pa.array(np.full(len(pages), NEAR, dtype=np.uint8)),
        pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(pages), [None, pa.py_buffer(bands.astype("<u8").tobytes())]
        ),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
        pa.nulls(len(pages), pa.string()),
    ]
    return pa.table(columns, schema=signature_schema(config))


def url_hash(url: str) -> int:
    """64-bit hash of the canonical URL."""
    return xxhash.xxh3_64_intdigest(canonical_url(url).encode())


def text_hash(text: str) -> int:
    """First 8 bytes of the SHA-256 of the text without case and spacing."""
    normal = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:8], "big")


def minhash_bands(shingles: Sequence[np.ndarray], config: CleanConfig) -> np.ndarray:
    """One 64-bit hash for each band of each page's MinHash signature: (N, minhash_bands) uint64."""
    from rensa import RMinHash

    n_hashes = config.minhash_bands * config.minhash_rows
    if not shingles:
        return np.zeros((0, config.minhash_bands), dtype=np.uint64)
    offsets = np.concatenate(([0], np.cumsum([len(s) for s in shingles]))).astype(np.uint64)
    flat = np.concatenate(shingles) if offsets[-1] else np.zeros(0, dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, n_hashes, config.minhash_seed)
    rows = np.array(matrix.to_rows(), dtype=np.uint32).astype(np.uint64)
    return band_hashes(rows.reshape(len(shingles), config.minhash_bands, config.minhash_rows))


def band_hashes(rows: np.ndarray) -> np.ndarray:
    """(N, bands, rows) uint64 -> (N, bands) uint64, with a different hash function for each band.

    Multiply and shift for each row, then the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    hashes = np.broadcast_to(np.arange(1, rows.shape[1] + 1, dtype=np.uint64) * PRIME, rows.shape[:2]).copy()
    for row in range(rows.shape[2]):
        hashes = (hashes ^ rows[:, :, row]) * PRIME
        hashes ^= hashes >> np.uint64(32)
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def write_signatures(table: pa.Table, path: Path) -> None:
    """Write a signature file, the same bytes for the same rows."""
    pq.write_table(
        table.combine_chunks(),
        path,
        compression="zstd",
        compression_level=3,
        row_group_size=ROW_GROUP,
        use_dictionary=False,
        column_encoding={"shingles.list.element": "DELTA_BINARY_PACKED"},
        version="2.6",
        write_statistics=False,
        store_schema=True,
    )


def after_dedup(table: pa.Table, dropped: dict[int, tuple[int, str | None]]) -> pa.Table:
    """The signatures of a unit after deduplication. `dropped`: row -> (step, record_id of the kept page).

    Step 0 is for pages that were dropped later: nothing is to be compared with them. What later crawls cannot need is
    left out: bands and shingles of pages dropped before the step of near-duplicates.
    """
    reached = np.full(table.num_rows, NEAR, dtype=np.uint8)
    kept: list[str | None] = [None] * table.num_rows
    for row, (step, kept_id) in dropped.items():
        reached[row], kept[row] = step, kept_id
    near = pa.array(reached == NEAR)
    fields = {
        "reached": pa.array(reached),
        "bands": _only(table["bands"], near),
        "shingles": _only(table["shingles"], near),
        "duplicate_of": pa.array(kept, pa.string()),
    }
    columns = [fields.get(name, table[name]) for name in table.column_names]
    return pa.table(columns, schema=table.schema)


def _only(column: pa.ChunkedArray, mask: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    places = pc.if_else(mask, pa.array(np.arange(len(column))), None)
    return column.combine_chunks().take(places)


@dataclass(frozen=True)
class Batch:
    """Columns of consecutive pages, the first of which has the number `first`."""

    first: int
    columns: pa.RecordBatch

    def __len__(self) -> int:
        return self.columns.num_rows

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers: (N,)."""
        return self.columns.column(name).to_numpy(zero_copy_only=False)

    def strings(self, name: str) -> list[str | None]:
        """A column of strings."""
        return self.columns.column(name).to_pylist()

    def bands(self) -> np.ndarray:
        """(N, bands) uint64; rows of pages that did not reach NEAR are undefined."""
        column = self.columns.column("bands")
        width = column.type.byte_width
        start = column.offset * width
        data = np.frombuffer(column.buffers()[1], dtype="<u8", offset=start, count=len(column) * width // 8)
        return data.reshape(len(column), width // 8)


class SignatureFiles:
    """The pages of several signature files as one sequence, numbered in the order of the files."""

    def __init__(self, paths: Sequence[Path], config: CleanConfig):
        """Raises DataError where a file was made with other settings than `config` has."""
        self.paths = [Path(path) for path in paths]
        self.ranges: list[tuple[int, int]] = []  # first page of each file, and the one after its last
        self._groups: list[tuple[int, int, int]] = []  # file, row group, first page
        self.n_pages = 0
        for number, path in enumerate(self.paths):
            file = pq.ParquetFile(path)
            _check_settings(path, file.schema_arrow.metadata or {}, config)
            for group in range(file.metadata.num_row_groups):
                self._groups.append((number, group, self.n_pages))
                self.n_pages += file.metadata.row_group(group).num_rows
            self.ranges.append((self.n_pages - file.metadata.num_rows, self.n_pages))

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """All pages in order, one row group at a time, with the columns asked for."""
        yield from self._read(range(len(self._groups)), columns)

    def _read(self, groups: Sequence[int], columns: Sequence[str]) -> Iterator[Batch]:
        opened, file = -1, None
        for place in groups:
            number, group, first = self._groups[place]
            if file is None or number != opened:
                opened, file = number, pq.ParquetFile(self.paths[number])
            table = file.read_row_group(group, columns=list(columns), use_threads=False).combine_chunks()
            for batch in table.to_batches():
                yield Batch(first, batch)
                first += len(batch)

    def _among(self, pages: np.ndarray, columns: Sequence[str]) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batches that hold some of the sorted `pages`, each with the rows of those."""
        starts = np.array([first for _, _, first in self._groups], dtype=np.int64)
        wanted = np.unique(np.searchsorted(starts, pages, side="right") - 1)
        for batch in self._read(wanted.tolist(), columns):
            low, high = np.searchsorted(pages, (batch.first, batch.first + len(batch)))
            if high > low:
                yield batch, pages[low:high] - batch.first

    def shingles(self, pages: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of sorted, distinct pages, in pieces: (page numbers, number of shingles of each, all their shingles)."""
        for batch, rows in self._among(pages, ["shingles"]):
            lists = batch.columns.column("shingles").take(pa.array(rows))
            counts = np.diff(lists.offsets.to_numpy()).astype(np.int64)
            yield rows + batch.first, counts, lists.flatten().to_numpy().astype(np.int32, copy=False)

    def strings(self, name: str, pages: np.ndarray) -> list[str | None]:
        """A column of strings, of sorted pages."""
        found: list[str | None] = []
        for batch, rows in self._among(pages, [name]):
            found += batch.columns.column(name).take(pa.array(rows)).to_pylist()
        return found


def _check_settings(path: Path, metadata: dict[bytes, bytes], config: CleanConfig) -> None:
    for name, value in _metadata(config).items():
        if metadata.get(name) != value:
            theirs = metadata.get(name, b"nothing").decode()
            raise DataError(
                f"{path}: made with {name.decode()} = {theirs}, here it is {value.decode()}, so its pages cannot be "
                "compared. Use the same settings for all crawls, or clean that crawl again."
            )
