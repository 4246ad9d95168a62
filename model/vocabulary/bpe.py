"""Byte-pair merges from piece counts, in NumPy: what Hugging Face's trainer learns, in a fraction of its memory.

The same merges in the same order as `tokenizers.trainers.BpeTrainer` (the tests compare them): the most frequent pair
is merged, of equals the one with the lower ids, until the vocabulary is full (Sennrich et al., arXiv 1508.07909).
Notable:
- text is counted first, in batches on all cores; a distinct piece is then stored once, with its count;
- all pieces are in one array, one element per byte. A token's id is stored at its first byte and, inverted, at its
  last, so that neighbours are found by arithmetic: no linked lists (the library's symbol takes 32 bytes, ours 4);
- a pair's count never rises after its creation, because every pair with a new token is created by that token's merge.
  So counts are checked when a pair is popped from the heap, not updated, and pairs rarer than a floor need not be
  stored at all: when none above the floor is left, the floor is lowered and the array is counted again.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
import regex

from core.progress import progress_bar
from model.vocabulary.byte_level import BYTES

SEPARATOR = 0  # the id between pieces and at both ends of the array; bytes have the ids 1 to 256
Pair = tuple[int, int]  # ids
Ints = npt.NDArray[np.int64]
FLOOR_STEP = 4  # the floor is divided by this: the array is counted some ten times for 100,000 merges
SIEVE_BITS = 22  # at most 2**22 counters in the sieve that keeps rare pairs out of the sort
BLOCK = 2**24  # positions counted at a time, to bound memory
BATCH = 2**22  # characters that a worker counts at a time: a second of work


def count_pieces(texts: Iterable[str], pattern: str) -> Counter[str]:
    """The number of occurrences in the texts of each piece that `pattern` splits them into."""
    batches = _batches(progress_bar(None, "counting", " texts", iterable=texts, disable=None))
    total: Counter[str] = Counter()
    if (first := next(batches, None)) is None:
        return total
    total.update(_count(first, pattern))
    if (second := next(batches, None)) is None:
        return total  # one batch is not worth starting workers
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = deque([pool.submit(_count, second, pattern)])
        for batch in batches:
            waiting.append(pool.submit(_count, batch, pattern))
            if len(waiting) > 2 * workers:
                total.update(waiting.popleft().result())
        for counted in waiting:
            total.update(counted.result())
    return total


def learn_merges(
    pieces: Counter[str], alphabet: Sequence[int], merges: int, min_frequency: int = 1
) -> list[tuple[bytes, bytes]]:
    """The pairs to merge, in order: `merges` of them, or fewer where no other is seen `min_frequency` times.

    alphabet: the 256 byte values in the order of their ids, which decides between pairs of equal count.
    """
    text = _Pieces(pieces, alphabet, merges)
    learned: list[tuple[bytes, bytes]] = []
    floor = text.most_frequent() + 1
    with progress_bar(merges, "merging", " tokens", disable=None) as bar:
        while floor > min_frequency and len(learned) < merges:
            floor = max(min_frequency, floor // FLOOR_STEP)
            heap = [(-count, pair) for pair, count in text.count_pairs(floor).items()]
            heapq.heapify(heap)
            while heap and len(learned) < merges:
                stale, pair = heapq.heappop(heap)
                positions, count = text.positions_of(pair)
                if count == -stale:
                    learned.append((text.tokens[pair[0]], text.tokens[pair[1]]))
                    found = text.merge(pair, positions, floor)
                    bar.update()
                else:
                    found = {pair: count} if count >= floor else {}
                for pair, count in found.items():
                    heapq.heappush(heap, (-count, pair))
    return learned


class _Pieces:
    """The distinct pieces, each with its count, and the tokens that they consist of so far.

    ids[p] is a token's id where it starts and the inverse of it (a negative number) at its other bytes, so that
    `ids >= 0` are the starts and `ids[p - 1]` gives the token before the one at p.
    """

    def __init__(self, pieces: Counter[str], alphabet: Sequence[int], merges: int):
        encoded = [piece.encode() for piece in pieces]
        lengths = np.fromiter((len(piece) + 1 for piece in encoded), np.int64, len(encoded))
        counts = np.fromiter(pieces.values(), np.int64, len(encoded))
        id_of = np.zeros(BYTES, np.int32)
        id_of[list(alphabet)] = np.arange(1, BYTES + 1)
        self.ids = np.full(lengths.sum() + 1, SEPARATOR, np.int32)
        self.weights = np.zeros(len(self.ids), np.int64)  # count of the piece at each position
        self.weights[1:] = np.repeat(counts, lengths)
        content = np.ones(len(self.ids), bool)
        content[0] = content[np.cumsum(lengths)] = False
        self.ids[content] = id_of[np.frombuffer(b"".join(encoded), np.uint8)]
        self.tokens = [b"", *(bytes([value]) for value in alphabet)]
        # Bytes of each token; a separator takes one element.
        self.lengths = np.ones(len(self.tokens) + merges, np.int64)
        self.sieve_bits = min(SIEVE_BITS, len(self.ids).bit_length())
        self.positions: dict[Pair, Ints] = {}  # of the pairs at or above the floor, in ascending order

    def most_frequent(self) -> int:
        """The count of the most frequent pair, or a little more, as pairs share counters."""
        return int(max(self._sieve(), default=0))

    def count_pairs(self, floor: int) -> dict[Pair, int]:
        """Count the array again: the pairs that occur at least `floor` times. Their positions are stored."""
        self.positions.clear()
        sieve = self._sieve()
        frequent = []
        for positions, keys in self._pairs():
            common = sieve[self._slots(keys)] >= floor
            frequent.append((positions[common], keys[common]))
        if not frequent:
            return {}
        positions, keys = (np.concatenate(part) for part in zip(*frequent, strict=True))
        return self._store(positions, keys, floor)

    def positions_of(self, pair: Pair) -> tuple[Ints, int]:
        """Where the pair still occurs, and its count; overlapping ones (aaa) count, as in the library."""
        positions = self.positions[pair]
        positions = positions[self.ids[positions] == pair[0]]
        positions = positions[self.ids[positions + self.lengths[pair[0]]] == pair[1]]
        self.positions[pair] = positions
        return positions, int(self.weights[positions].sum())

    def merge(self, pair: Pair, positions: Ints, floor: int) -> dict[Pair, int]:
        """Put a new token at those positions -> the new pairs at or above the floor, and their counts."""
        del self.positions[pair]
        left, right = (int(self.lengths[i]) for i in pair)
        new = len(self.tokens)
        self.tokens.append(self.tokens[pair[0]] + self.tokens[pair[1]])
        self.lengths[new] = left + right
        if pair[0] == pair[1]:
            positions = _without_overlap(positions, left)
        self.ids[positions] = new
        self.ids[positions + left] = ~new
        self.ids[positions + left + right - 1] = ~new
        before = self.ids[positions - 1]
        before = np.where(before < 0, ~before, before)
        starts = (positions - self.lengths[before])[before != SEPARATOR]
        starts = np.unique(
            np.concatenate([starts, positions[self.ids[positions + left + right] != SEPARATOR]])
        )
        return self._store(starts, self._keys(starts), floor)

    def _keys(self, starts: Ints) -> Ints:
        """(left id, right id) of the pairs at those positions, as one number each."""
        left = self.ids[starts]
        return (left.astype(np.int64) << 32) | self.ids[starts + self.lengths[left]]

    def _pairs(self) -> Iterator[tuple[Ints, Ints]]:
        """(positions, keys) of all pairs, block by block."""
        for begin in range(0, len(self.ids), BLOCK):
            starts = begin + np.flatnonzero(self.ids[begin : begin + BLOCK] > SEPARATOR)
            after = self.ids[starts + self.lengths[self.ids[starts]]]
            starts = starts[after != SEPARATOR]
            if len(starts):
                yield starts, self._keys(starts)

    def _slots(self, keys: Ints) -> Ints:
        """The index of each key's counter in the sieve: Fibonacci hashing, whose high bits depend on the whole key."""
        mixed = keys.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(64 - self.sieve_bits)).view(np.int64)

    def _sieve(self) -> npt.NDArray[np.float64]:
        """Counts of all pairs, several pairs sharing a counter: an upper bound of each pair's count."""
        sieve = np.zeros(2**self.sieve_bits)
        for positions, keys in self._pairs():
            sieve += np.bincount(self._slots(keys), self.weights[positions], len(sieve))
        return sieve

    def _store(self, positions: Ints, keys: Ints, floor: int) -> dict[Pair, int]:
        """Group positions (ascending) by pair; store those of pairs at or above the floor -> their counts."""
        if not len(positions):
            return {}
        order = np.argsort(keys, kind="stable")
        positions, keys = positions[order], keys[order]
        cuts = np.flatnonzero(keys[1:] != keys[:-1]) + 1
        bounds, ends = np.append(0, cuts), np.append(cuts, len(keys))
        counts = np.add.reduceat(self.weights[positions], bounds)
        frequent = np.flatnonzero(counts >= floor)
        result = {}
        for key, begin, end, count in zip(
            keys[bounds[frequent]].tolist(),
            bounds[frequent].tolist(),
            ends[frequent].tolist(),
            counts[frequent].tolist(),
            strict=True,
        ):
            pair = (key >> 32, key & 0xFFFFFFFF)
            self.positions[pair] = positions[begin:end]
            result[pair] = count
        return result


def _without_overlap(positions: Ints, length: int) -> Ints:
    """Every second position of runs that are `length` apart (aaaa), from the first: merging goes from left to right."""
    order = np.arange(len(positions))
    begins = np.r_[True, np.diff(positions) != length]
    return positions[(order - np.maximum.accumulate(np.where(begins, order, 0))) % 2 == 0]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts of about BATCH characters."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _count(texts: list[str], pattern: str) -> Counter[str]:
    find = regex.compile(pattern).findall
    counted: Counter[str] = Counter()
    for text in texts:
        counted.update(find(text))
    return counted
