"""In which order training reads documents, epoch by epoch: a pure function of (data, seed, epoch).

An epoch is the training documents, each as often as its weight says, in a random order of its own, laid out in rows of
T places (tokens to predict). Two packings:

- `stream` concatenates them and cuts that into rows: no place is empty, most documents are cut somewhere; a remainder
  that does not fill a row at the epoch's end is not read in it;
- `best_fit` puts whole documents into rows (packing.py). Only a document longer than a row is cut, into row-sized
  chunks, each a row of its own, and a remainder that is packed like a document. Every token is read; a few places
  stay empty.

Notable: the order comes from hashing (data, seed, epoch, place) and sorting, not from a library's random generator, so
it is the same on every machine and with every version. An epoch takes 20 bytes of memory a piece.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from model.data.config import check_packing
from model.data.packing import pack


@dataclass(frozen=True)
class Epoch:
    """The layout of an epoch. Piece i is length[i] tokens of document[i] from offset[i] on, and is predicted at places
    start[i] … of the epoch's `rows` rows of T places. Arrays are (pieces,), by start."""

    rows: int
    document: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    start: np.ndarray

    def between(self, begin: int, end: int) -> slice:
        """The pieces with a token at places begin … end-1, of which the first holds one."""
        first = int(np.searchsorted(self.start, begin, "right")) - 1
        return slice(first, int(np.searchsorted(self.start, end, "left")))


class Order:
    """The epochs of a set of documents.

    name: what else the order depends on (the data's hash and a seed). documents: their indices; length: of each, in
    tokens; weight: times an epoch reads it. seq_len: places a row (T). Raises ConfigError for an unknown packing.
    """

    def __init__(
        self,
        name: str,
        documents: np.ndarray,
        length: np.ndarray,
        weight: np.ndarray,
        seq_len: int,
        packing: str = "stream",
    ):
        check_packing(packing)
        self.name, self.seq_len, self.packing = name, seq_len, packing
        self._documents, self._length, self._weight = documents.astype(np.int32), length, weight
        self._whole = bool((weight == np.floor(weight)).all())  # then every epoch reads the same documents
        self.tokens_an_epoch = round(float(weight @ length))
        self._first_row: tuple[int, ...] = (0,)  # of each epoch known so far, and of the next
        self.epoch = lru_cache(maxsize=2)(self._lay_out)
        self.rows_in = lru_cache(maxsize=None)(self._count_rows)

    @property
    def fills_rows(self) -> bool:
        """Whether there is a row to read. With fractional weights an epoch may read less than another, so two rows an
        epoch are required: then some epoch has at least one."""
        return self.tokens_an_epoch >= (1 if self._whole else 2) * self.seq_len

    def place(self, row: int) -> tuple[int, int]:
        """The epoch of a row counted over all epochs, and its number there."""
        if self._whole:
            return divmod(row, self.rows_in(0))
        first = self._first_row
        while first[-1] <= row:
            first += (first[-1] + self.rows_in(len(first) - 1),)
        self._first_row = first  # in one assignment: two threads may ask
        number = bisect_right(first, row) - 1
        return number, row - first[number]

    def spans(self, row: int, n: int) -> Iterator[tuple[Epoch, int, int]]:
        """Rows row … row+n-1, counted over all epochs, as (epoch, row in it, number of rows)."""
        while n:
            number, place = self.place(row)
            epoch = self.epoch(number)
            taken = min(n, epoch.rows - place)
            yield epoch, place, taken
            row, n = row + taken, n - taken

    def packed(self, number: int = 0) -> dict[str, float]:
        """Shares of an epoch: `full`: of its places, with a token; `cut`: of its documents, in more than one row."""
        epoch, t = self.epoch(number), self.seq_len
        end = np.minimum(epoch.start + epoch.length, epoch.rows * t)
        read = np.maximum(0, end - epoch.start)
        whole = epoch.length == self._length[np.searchsorted(self._documents, epoch.document)]
        whole &= (end - 1) // t == epoch.start // t
        cut = epoch.document[~whole]
        return {
            "full": int(read.sum()) / (epoch.rows * t),
            "cut": np.unique(cut).size / np.unique(epoch.document).size,
        }

    def _count_rows(self, number: int) -> int:
        length = self._length[self._entries(number)]
        if self.packing == "stream":
            return int(length.sum(dtype=np.int64)) // self.seq_len
        tails = np.bincount(length % self.seq_len, minlength=self.seq_len)
        tails[0] = 0
        return int((length // self.seq_len).sum(dtype=np.int64)) + pack(tails, self.seq_len).rows

    def _lay_out(self, number: int) -> Epoch:
        """Epoch `number`, which depends on the documents, the name and the number only."""
        entries = self._entries(number)
        order = entries[np.argsort(self._draw(len(entries), number, "order"))]
        return self._stream(order) if self.packing == "stream" else self._best_fit(order, number)

    def _entries(self, epoch: int) -> np.ndarray:
        """Indices into `documents` of those that an epoch reads, each as often as it does.

        A document of weight w and a number u in [0, 1) of its own has been read floor(w·e + u) times before epoch e:
        with w = 0.5 every other epoch, half of the documents in each.
        """
        if self._whole:
            return np.repeat(np.arange(len(self._documents), dtype=np.int32), self._weight.astype(np.int64))
        u = (self._draw(len(self._documents), "weight") >> np.uint64(11)) * 2.0**-53
        times = np.floor(self._weight * (epoch + 1) + u) - np.floor(self._weight * epoch + u)
        return np.repeat(np.arange(len(u), dtype=np.int32), times.astype(np.int64))

    def _stream(self, order: np.ndarray) -> Epoch:
        length = self._length[order]
        ends = np.cumsum(length, dtype=np.int64)
        offset = np.broadcast_to(np.int32(0), len(order))
        rows = int(length.sum(dtype=np.int64)) // self.seq_len
        return Epoch(rows, self._documents[order], offset, length, ends - length)

    def _best_fit(self, order: np.ndarray, number: int) -> Epoch:
        t, length = self.seq_len, self._length[order]
        chunks, tail = length // t, length % t
        # 0, 1, … of its document.
        chunk = np.arange(chunks.sum()) - np.repeat(np.cumsum(chunks) - chunks, chunks)
        tails = np.flatnonzero(tail)
        from_largest = (t - tail[tails]).astype(np.min_scalar_type(t))  # radix sort of two bytes is linear
        tails = tails[np.argsort(from_largest, kind="stable")]
        packing = pack(np.bincount(tail[tails], minlength=t), t)
        packed = tails[packing.item]
        rows = packing.rows + len(chunk)
        row = np.concatenate([packing.row, np.arange(packing.rows, rows, dtype=np.int32)])
        document = np.concatenate([order[packed], np.repeat(order, chunks)])
        offset = np.concatenate([chunks[packed] * t + packing.offset, chunk * t]).astype(np.int32)
        length = np.concatenate([packing.length, np.full(len(chunk), t, np.int32)])

        place = np.empty(rows, np.uint64)
        place[np.argsort(self._draw(rows, number, "rows"))] = np.arange(rows, dtype=np.uint64)
        # The order within a row is mixed too (Knuth's multiplicative hash): otherwise the longest would come first.
        mixed = np.arange(len(row), dtype=np.uint32) * np.uint32(2654435761)
        key = place[row] << np.uint64(32) | mixed
        by_place = np.argsort(key)
        row, length = (key[by_place] >> np.uint64(32)).astype(np.int64), length[by_place]
        before = np.cumsum(length, dtype=np.int64) - length
        begins = np.flatnonzero(np.diff(row, prepend=-1))  # the first piece of each row
        in_row = before - np.repeat(before[begins], np.diff(begins, append=len(row)))
        document = self._documents[document[by_place]]
        return Epoch(rows, document, offset[by_place], length, row * t + in_row)

    def _draw(self, n: int, *purpose: int | str) -> np.ndarray:
        """n distinct uint64, uniformly distributed, that depend on name and purpose: SplitMix64's stream."""
        key = hashlib.sha256("/".join(map(str, (self.name, *purpose))).encode()).digest()
        step = np.uint64(0x9E3779B97F4A7C15)
        return mix(np.uint64(int.from_bytes(key[:8], "little")) + np.arange(n, dtype=np.uint64) * step)


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): a bijection of uint64 whose output bits look random."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
