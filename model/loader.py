"""Which tokens a training step reads, as a pure function: batch = f(data, seed, step, rank, world size).

Notable:
- an epoch is all training documents (each `repeat` times) in an order drawn for it, laid end to end as one
  stream; row r is tokens r·T … r·T+T of that stream, and step s of B rows takes rows s·B … s·B+B-1. A new epoch
  packs anew;
- the order comes from hashing (data, seed, epoch, place) and sorting, not from a library's random generator:
  it is the same on every machine and with every version;
- the rows of a step do not depend on the number of processes, which only share them out;
- so *which steps saw this page* is computed, not logged: `steps_that_saw`, and the other way `records_of`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.run_log import Refusal
from model.shards import HELD_OUT, TRAIN, manifest_hash, read_manifest


class TokenData:
    """A folder of token shards, memory-mapped."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.manifest = read_manifest(folder)
        self.hash = manifest_hash(folder)
        self.separator: int = self.manifest["separator"]
        dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        self._shards = [
            np.memmap(self.folder / s["file"], dtype, "r") for s in self.manifest["shards"] if s["tokens"]
        ]
        index = pq.read_table(self.folder / self.manifest["index"]["file"])
        self.record_ids = index["record_id"]
        self.shard, self.start, self.length, self.n_bytes, self.repeat = (
            index[name].to_numpy() for name in ("shard", "start", "length", "n_bytes", "repeat")
        )
        self._held = np.array(index["split"].to_pylist(), dtype=object) == HELD_OUT

    def documents(self, split: str = TRAIN) -> np.ndarray:
        """Numbers of the documents of a split, in the corpus' order."""
        return np.flatnonzero(self._held if split == HELD_OUT else ~self._held)

    def tokens(self, document: int) -> np.ndarray:
        """A document's tokens and the separator after it."""
        start = self.start[document]
        return self._shards[self.shard[document]][start : start + self.length[document]]

    def texts(self, tokenizer) -> Iterator[tuple[str, str]]:
        """(record_id, text) of every document, decoded from its tokens."""
        for document, record_id in enumerate(self.record_ids.to_pylist()):
            yield record_id, tokenizer.decode(self.tokens(document)[:-1].tolist())

    def find(self, record_id: str) -> list[int]:
        """The documents made from this crawl record (several if several crawls have it)."""
        return pc.indices_nonzero(pc.equal(self.record_ids, record_id)).to_pylist()


class Loader:
    """The rows of each step. seq_len: tokens a row (T); rows: rows a step over all processes (B)."""

    def __init__(self, data: TokenData, seq_len: int, rows: int, seed: int = 0):
        self.data, self.seq_len, self.rows, self.seed = data, seq_len, rows, seed
        documents = data.documents(TRAIN)
        self._entries = np.repeat(documents, data.repeat[documents])
        self.tokens_an_epoch = int(data.length[self._entries].sum())
        self.rows_an_epoch = (self.tokens_an_epoch - 1) // seq_len
        if self.rows_an_epoch < 1:
            raise Refusal(
                f"{data.folder}: {self.tokens_an_epoch} training tokens do not fill one row of {seq_len}. "
                "Use a larger corpus or a shorter seq_len."
            )
        self._order = lru_cache(maxsize=2)(self._make_order)

    def batch(self, step: int, share: slice | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets), each (rows, T) int64, of this step; `share` of them for one of several processes."""
        numbers = range(step * self.rows, (step + 1) * self.rows)[share or slice(None)]
        rows = np.stack([self.row(number) for number in numbers]).astype(np.int64)
        return rows[:, :-1], rows[:, 1:]

    def row(self, number: int) -> np.ndarray:
        """Row `number`, counted over all epochs: T + 1 tokens, of which the last is only a target."""
        epoch, place = divmod(number, self.rows_an_epoch)
        documents, starts = self._order(epoch)
        begin, end = place * self.seq_len, (place + 1) * self.seq_len + 1
        pieces = []
        for i in range(*self._span(starts, begin, end)):
            tokens = self.data.tokens(documents[i])
            pieces.append(tokens[max(0, begin - starts[i]) : end - starts[i]])
        return np.concatenate(pieces)

    def records_of(self, step: int) -> list[str]:
        """Record ids of the documents this step reads, in reading order, each as often as it is read."""
        found = []
        for number in range(step * self.rows, (step + 1) * self.rows):
            epoch, place = divmod(number, self.rows_an_epoch)
            documents, starts = self._order(epoch)
            begin, end = place * self.seq_len, (place + 1) * self.seq_len + 1
            span = documents[slice(*self._span(starts, begin, end))]
            found += self.data.record_ids.take(span).to_pylist()
        return found

    def steps_that_saw(self, record_id: str, steps: int) -> list[int]:
        """Of the first `steps` steps, those that read at least one token of this record's document."""
        documents, seen = self.data.find(record_id), set()
        for epoch in range(-(-steps * self.rows // self.rows_an_epoch)):
            order, starts = self._order(epoch)
            for i in np.flatnonzero(np.isin(order, documents)):
                # Row r reads stream places r·T … r·T+T, both included.
                first = max(0, -(-(starts[i] - self.seq_len) // self.seq_len))
                last = min((starts[i + 1] - 1) // self.seq_len, self.rows_an_epoch - 1)
                rows = epoch * self.rows_an_epoch + np.arange(first, last + 1)
                seen.update((rows // self.rows).tolist())
        return sorted(step for step in seen if step < steps)

    def _span(self, starts: np.ndarray, begin: int, end: int) -> tuple[int, int]:
        """Entries of an order that hold stream places begin … end-1."""
        return int(np.searchsorted(starts, begin, "right")) - 1, int(np.searchsorted(starts, end, "left"))

    def _make_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's documents in order, and where each begins in the stream (one more: the stream's end)."""
        key = hashlib.sha256(f"{self.data.hash}/{self.seed}/{epoch}".encode()).digest()
        salt = np.uint64(int.from_bytes(key[:8], "little"))
        place = np.arange(len(self._entries), dtype=np.uint64)
        order = self._entries[np.argsort(mix(place ^ mix(place + salt)), kind="stable")]
        starts = np.concatenate([[0], np.cumsum(self.data.length[order])])
        # np.searchsorted finds the last entry that begins at or before a place; the stream's end is no entry.
        return order, starts


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): a bijection of uint64 that leaves no pattern in its bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
