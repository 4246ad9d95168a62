"""The exact similarity of many pairs of pages, with the shingles of a bounded number of pages in memory.

Pairs are ordered by the clusters that they would form and split into chunks; one pass over the signature files writes
for every chunk the shingles of its pages; then each chunk is compared by itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from corpus.dedup.spill import take_ragged

BYTES_A_CHARACTER = 2  # of a page's shingles: int32 each, at least two characters to a word
CELLS = 1 << 19  # shingles compared at once; 2 MB of int32 fit the processor's cache
LOW = np.uint64(0xFFFFFFFF)


class HasShingles(Protocol):
    """A source of shingles: SignatureFiles, or a synthetic one."""

    def shingles(self, pages: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of sorted, distinct pages, in pieces: (page numbers, number of shingles of each, all their shingles)."""
        ...


def pack(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairs of pages below 2^32, the smaller first, as one number each: (N,) uint64."""
    low, high = np.minimum(a, b).astype(np.uint64), np.maximum(a, b).astype(np.uint64)
    return (low << np.uint64(32)) | high


def unpack(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smaller and the larger page of each pair: two (N,) int64."""
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & LOW).astype(np.int64)


def components(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The connected components of a graph: the pages of all pairs, sorted, and the number of each page's component.

    Every page has a label, at first itself; labels are replaced by the smaller label of each pair, then by that label's
    label, until none changes (after Shiloach and Vishkin 1982). scipy has it too, and takes half a second to load.
    """
    nodes, ends = np.unique(np.concatenate((a, b)), return_inverse=True)
    left, right = ends.reshape(2, -1)
    label = np.arange(len(nodes))
    while True:
        here, there = label[left], label[right]
        apart = here != there
        if not apart.any():
            return nodes, np.unique(label, return_inverse=True)[1].reshape(-1)
        left, right, here, there = left[apart], right[apart], here[apart], there[apart]
        np.minimum.at(label, np.maximum(here, there), np.minimum(here, there))
        while not np.array_equal(label, label := label[label]):
            pass


def similarities(
    pairs: np.ndarray,
    pages: HasShingles,
    lengths_of: Callable[[np.ndarray], np.ndarray],
    least: float,
    folder: Path,
    memory: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the packed, distinct pairs whose Jaccard similarity is at least `least`, with it, sorted.

    `lengths_of(pages)`: the lengths of pages in characters, from which their shingles' memory is estimated.
    `memory`: bytes for the shingles of a chunk. `folder`: temporary, for what does not fit in one chunk.
    """
    if not len(pairs):
        return pairs, np.zeros(0)
    chunks = _chunks(pairs, lengths_of, memory)
    found, values = [], []
    for chunk, (numbers, counts, flat) in zip(chunks, _loaded(chunks, pages, folder), strict=True):
        starts = np.cumsum(counts) - counts
        a, b = (np.searchsorted(numbers, side) for side in unpack(chunk))
        value = jaccard_of_pairs(flat, starts, counts, a, b, least)
        found.append(chunk[value >= least])
        values.append(value[value >= least])
    kept, value = np.concatenate(found), np.concatenate(values)
    order = np.argsort(kept)
    return kept[order], value[order]


def _chunks(
    pairs: np.ndarray, lengths_of: Callable[[np.ndarray], np.ndarray], memory: int
) -> list[np.ndarray]:
    """The pairs in chunks whose pages' shingles fit in memory; pairs that may form one cluster stay together."""
    a, b = unpack(pairs)
    nodes, label = components(a, b)
    cost = lengths_of(nodes) * BYTES_A_CHARACTER + 16
    if cost.sum() <= memory:
        return [pairs]
    place = np.searchsorted(nodes, a)
    of_cluster = np.bincount(label, weights=cost).astype(np.int64)
    small = of_cluster[label[place]] <= memory // 2
    chunks = []
    # Clusters that fit: the cost of each is counted at its first pair.
    whole = np.flatnonzero(small)
    whole = whole[np.argsort(label[place[whole]], kind="stable")]
    labels = label[place[whole]]
    first = np.concatenate(([True], labels[1:] != labels[:-1])) if len(whole) else np.zeros(0, dtype=bool)
    chunks += _split(pairs[whole], np.where(first, of_cluster[labels], 0), memory // 2)
    # The others: every pair is counted as if it were alone.
    rest = np.flatnonzero(~small)
    chunks += _split(pairs[rest], cost[place[rest]] + cost[np.searchsorted(nodes, b[rest])], memory // 2)
    return chunks


def _split(pairs: np.ndarray, cost: np.ndarray, budget: int) -> list[np.ndarray]:
    if not len(pairs):
        return []
    piece = np.cumsum(cost) // max(1, budget)
    return np.split(pairs, np.flatnonzero(piece[1:] != piece[:-1]) + 1)


def _loaded(chunks: list[np.ndarray], pages: HasShingles, folder: Path) -> Iterator[tuple[np.ndarray, ...]]:
    """For each chunk: its pages, sorted, the number of shingles of each, and all their shingles."""
    needs = [np.unique(np.concatenate(unpack(chunk))) for chunk in chunks]
    if len(chunks) == 1:
        parts = list(pages.shingles(needs[0]))
        yield tuple(np.concatenate(column) for column in zip(*parts, strict=True))
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for numbers, counts, flat in pages.shingles(np.unique(np.concatenate(needs))):
        starts = np.cumsum(counts) - counts
        for chunk, need in enumerate(needs):
            low, high = np.searchsorted(need, (numbers[0], numbers[-1] + 1))
            if low < high:
                rows = np.searchsorted(numbers, need[low:high])
                with open(folder / f"{chunk}.counts", "ab") as file:
                    counts[rows].tofile(file)
                with open(folder / f"{chunk}.shingles", "ab") as file:
                    take_ragged(flat, starts[rows], counts[rows]).tofile(file)
    for chunk, need in enumerate(needs):
        counts = np.fromfile(folder / f"{chunk}.counts", dtype=np.int64)
        yield need, counts, np.fromfile(folder / f"{chunk}.shingles", dtype=np.int32)
    shutil.rmtree(folder)


def jaccard_of_pairs(
    flat: np.ndarray, starts: np.ndarray, counts: np.ndarray, a: np.ndarray, b: np.ndarray, least: float
) -> np.ndarray:
    """Jaccard similarity of pages a[i] and b[i], whose shingles are flat[starts[i] : starts[i] + counts[i]]: (N,).

    Pairs whose numbers of shingles alone show that they are below `least` get 0 without comparison. The others are
    rows of a matrix, both pages' shingles in one row, which is sorted: equal neighbours are shared shingles.
    """
    value = np.zeros(len(a))
    fewer, more = np.minimum(counts[a], counts[b]), np.maximum(counts[a], counts[b])
    possible = np.flatnonzero((fewer > 0) & (fewer >= least * more))
    possible = possible[np.argsort(counts[a[possible]] + counts[b[possible]], kind="stable")]
    width = counts[a[possible]] + counts[b[possible]]
    start = 0
    while start < len(possible):
        # All rows are as wide as the last, the widest: as many of them as fit.
        stop = min(len(possible), start + max(1, CELLS // int(width[start])))
        stop = start + max(1, min(stop - start, CELLS // int(width[stop - 1])))
        rows = possible[start:stop]
        shared = _shared(flat, starts, counts, a[rows], b[rows])
        value[rows] = shared / (width[start:stop] - shared)
        start = stop
    return value


def _shared(
    flat: np.ndarray, starts: np.ndarray, counts: np.ndarray, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """How many shingles the pages a[i] and b[i] share: (N,) int64."""
    both = np.stack((a, b), axis=1).ravel()
    n = counts[both].reshape(-1, 2).sum(axis=1)
    columns = np.arange(int(n.max()), dtype=np.int32)
    matrix = np.broadcast_to(-1 - columns, (len(a), len(columns))).copy()  # all distinct, none a shingle
    matrix[columns < n[:, None]] = take_ragged(flat, starts[both], counts[both])
    matrix.sort(axis=1)
    return (matrix[:, 1:] == matrix[:, :-1]).sum(axis=1)
