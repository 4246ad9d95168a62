"""Which tokens a training step reads, as a pure function: batch = f(data, seed, step, rank, world size).

Notable:
- a row is T tokens to predict; its inputs are the preceding tokens, and a document is preceded by the separator, as in
  evaluation (bits_per_byte.py). So every token of a document, and the separator that ends it, is predicted once each
  time the document is read;
- order.py decides which documents are in which row: step s of B rows takes rows s·B … s·B+B-1, over all epochs;
- the rows of a step do not depend on the number of processes, which only divide them;
- so *which steps saw this page* is computed, not logged: `steps_that_saw`, and its inverse `records_of`;
- a document costs 40 bytes of memory and no Python object; tokens are memory-mapped, and record ids stay on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.errors import DataError
from model.data.config import HELD_OUT, TRAIN
from model.data.order import Epoch, Order
from model.data.shards import manifest_hash, read_manifest
from model.network.config import IGNORE

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer


class TokenData:
    """A folder of token shards, memory-mapped."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.manifest = read_manifest(folder)
        self.hash = manifest_hash(folder)
        self.separator: int = self.manifest["separator"]
        dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        # Plain arrays over the maps: slicing an np.memmap takes ten times as long.
        self.shards = [
            np.asarray(np.memmap(self.folder / s["file"], dtype, "r")) if s["tokens"] else np.empty(0, dtype)
            for s in self.manifest["shards"]
        ]
        index = self._columns("shard", "start", "length", "split", "weight")
        self.shard, self.start, self.weight = (index[c].to_numpy() for c in ("shard", "start", "weight"))
        self.length = index["length"].to_numpy().astype(np.int32)
        self._split = {name: pc.equal(index["split"], name).to_numpy() for name in (TRAIN, HELD_OUT)}

    @cached_property
    def n_bytes(self) -> np.ndarray:
        """Length of each document as UTF-8, bytes."""
        return self._columns("n_bytes")["n_bytes"].to_numpy()

    def documents(self, split: str = TRAIN) -> np.ndarray:
        """Indices of the documents of a split, in the order of the corpus."""
        return np.flatnonzero(self._split[split])

    @property
    def tokens_an_epoch(self) -> int:
        """Training tokens, each document's as often as an epoch reads it (on average, for fractional weights)."""
        documents = self.documents(TRAIN)
        return round(float(self.weight[documents] @ self.length[documents]))

    def tokens(self, document: int) -> np.ndarray:
        """A document's tokens and the separator after it."""
        start = self.start[document]
        return self.shards[self.shard[document]][start : start + self.length[document]]

    def texts(self, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
        """(record_id, text) of every document, decoded from its tokens."""
        for first, ids in self._record_ids():
            for document, record_id in enumerate(ids.to_pylist(), first):
                yield record_id, tokenizer.decode(self.tokens(document)[:-1].tolist())

    def find(self, record_id: str) -> list[int]:
        """The documents made from this crawl record (several if several crawls have it)."""
        found = ((first, pc.indices_nonzero(pc.equal(ids, record_id))) for first, ids in self._record_ids())
        return [first + place for first, places in found for place in places.to_pylist()]

    def records(self, documents: np.ndarray) -> list[str]:
        """The crawl records that these documents were made from."""
        found = np.empty(len(documents), object)
        for first, ids in self._record_ids():
            here = np.flatnonzero((documents >= first) & (documents < first + len(ids)))
            found[here] = ids.take(documents[here] - first).to_pylist()
        return found.tolist()

    @property
    def _index(self) -> Path:
        return self.folder / self.manifest["index"]["file"]

    def _columns(self, *names: str) -> pa.Table:
        return pq.read_table(self._index, columns=list(names), memory_map=True)

    def _record_ids(self) -> Iterator[tuple[int, pa.ChunkedArray]]:
        """Record ids a row group at a time, with the index of the first: all together would be gigabytes."""
        with pq.ParquetFile(self._index, memory_map=True) as file:
            first = 0
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["record_id"])["record_id"]
                yield first, ids
                first += len(ids)


@dataclass(frozen=True)
class Rows:
    """Rows of one step: inputs and targets (N, T) int64 token ids; a target that is padding is IGNORE (-100).

    documents (N, T) int32, if requested: the number of each input's document within its row, from 0 and ascending,
    for a mask that hides documents from each other. A document's first input is the separator.
    """

    inputs: np.ndarray
    targets: np.ndarray
    documents: np.ndarray | None = None


class Loader:
    """The rows of each step. seq_len: tokens a row (T); rows: rows a step over all processes (B).

    Raises DataError where the data do not fill one row.
    """

    def __init__(
        self,
        data: TokenData,
        seq_len: int,
        rows: int,
        seed: int = 0,
        packing: str = "stream",
        mask_documents: bool = False,
    ):
        self.data, self.seq_len, self.rows, self.mask_documents = data, seq_len, rows, mask_documents
        train = data.documents(TRAIN)
        weights = data.weight[train]
        self.order = Order(f"{data.hash}/{seed}", train, data.length[train], weights, seq_len, packing)
        if not self.order.fills_rows:
            raise DataError(
                f"{data.folder}: {self.tokens_an_epoch} training tokens do not fill one row of {seq_len}. "
                "Use a larger corpus or a shorter seq_len."
            )

    @property
    def tokens_an_epoch(self) -> int:
        """Tokens that an epoch reads, on average where weights are fractional."""
        return self.order.tokens_an_epoch

    def batch(self, step: int, share: slice | None = None) -> Rows:
        """The rows of this step; only `share` of them for one of several processes."""
        first, last, _ = (share or slice(None)).indices(self.rows)
        inputs, targets = (np.empty((last - first, self.seq_len), np.int64) for _ in range(2))
        documents = np.empty(inputs.shape, np.int32) if self.mask_documents else None
        done = 0
        for epoch, row, n in self.order.spans(step * self.rows + first, last - first):
            part = slice(done, done + n)
            offset = self._read(epoch, row, inputs[part], targets[part])
            if documents is not None:
                _number(offset, targets[part], documents[part])
            done += n
        return Rows(inputs, targets, documents)

    def records_of(self, step: int) -> list[str]:
        """Record ids of the documents this step reads, in reading order, each as often as it is read."""
        t, found = self.seq_len, []
        for epoch, row, n in self.order.spans(step * self.rows, self.rows):
            found.append(epoch.document[epoch.between(row * t, (row + n) * t)])
        return self.data.records(np.concatenate(found))

    def steps_that_saw(self, record_id: str, steps: int) -> list[int]:
        """Of the first `steps` steps, those that predict at least one token of this record's document."""
        documents, t = self.data.find(record_id), self.seq_len
        seen: set[int] = set()
        first_row, last_epoch = 0, self.order.place(steps * self.rows - 1)[0]
        for number in range(last_epoch + 1 if documents else 0):
            epoch = self.order.epoch(number)
            for i in np.flatnonzero(np.isin(epoch.document, documents)):
                start, end = int(epoch.start[i]), int(epoch.start[i]) + int(epoch.length[i])
                rows = range(start // t, min(-(-end // t), epoch.rows))
                seen.update((first_row + row) // self.rows for row in rows)
            first_row += epoch.rows
        return sorted(step for step in seen if step < steps)

    def _read(self, epoch: Epoch, row: int, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Fill the arrays (n, T) with rows row … row+n-1 of an epoch. Returns the places where pieces begin."""
        begin, end = row * self.seq_len, row * self.seq_len + targets.size
        pieces = epoch.between(begin, end)
        document, start = epoch.document[pieces], epoch.start[pieces]
        first, last = np.maximum(start, begin), np.minimum(start + epoch.length[pieces], end)
        # Tokens of the document before the first one read here.
        skipped = epoch.offset[pieces] + (first - start)
        shard, source = self.data.shard[document], self.data.start[document] + skipped
        at, length = first - begin, last - first

        after, before = targets.reshape(-1), inputs.reshape(-1)
        padded = int(length.sum()) < after.size
        if padded:
            after.fill(IGNORE)
        shards = self.data.shards
        for s, tokens, to, n in zip(*(a.tolist() for a in (shard, source, at, length)), strict=True):
            after[to : to + n] = shards[s][tokens : tokens + n]
        before[1:] = after[:-1]
        if padded:
            before[before == IGNORE] = self.data.separator
        before[at] = self.data.separator
        for i in np.flatnonzero(skipped):  # the document began in another row: its last token there
            before[at[i]] = shards[shard[i]][source[i] - 1]
        return at


def _number(begins: np.ndarray, targets: np.ndarray, documents: np.ndarray) -> None:
    """Fill documents (n, T) with the number of each place's document within its row; padding counts as a document."""
    flat = np.zeros(targets.size, np.int32)
    flat[begins] = 1
    if flat.size > 1:
        padding = targets.reshape(-1) == IGNORE
        flat[1:] |= padding[1:] & ~padding[:-1]
    marks = flat.reshape(targets.shape)
    marks[:, 0] = 0
    np.cumsum(marks, axis=1, out=documents)
