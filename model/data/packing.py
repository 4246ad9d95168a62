"""Best-fit-decreasing packing: items of up to `capacity` tokens into few rows of that size.

Every item, the largest first, goes to the row with the least free space that still fits it (arXiv 2404.10830:
truncating fewer documents than the concatenated stream reduces hallucination). Notable:

- rows with equal free space are interchangeable, so items of one size are placed in bulk: the work grows with the
  number of sizes, not of items. So the result depends only on how many items of each size there are: the same rows
  in every epoch, with other documents of that size in them;
- where the sizes do not fit together (all of 0.6 rows, say) the emptiest rows are dissolved and their items cut to
  fill the gaps of the others, until FULL of all places hold a token. No token is lost.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

FULL = 0.99  # share of the places that must hold a token; below, items are cut


@dataclass(frozen=True)
class Packing:
    """Pieces of items in rows. Items are numbered from the largest to the smallest; arrays are (pieces,)."""

    rows: int
    row: np.ndarray
    item: np.ndarray
    offset: np.ndarray  # tokens of the item before the piece; 0 unless it was cut
    length: np.ndarray  # tokens


def pack(counts: np.ndarray, capacity: int) -> Packing:
    """Pack counts[s] items of s tokens each, 0 < s <= capacity."""
    sizes = np.repeat(np.arange(len(counts))[::-1], counts[::-1]).astype(np.int32)
    row = best_fit(counts, capacity)
    whole = Packing(
        int(row.max(initial=-1)) + 1,
        row,
        np.arange(len(sizes), dtype=np.int32),
        np.zeros(len(sizes), np.int32),
        sizes,
    )
    total = int(sizes.sum(dtype=np.int64))
    enough = max(-(-total // capacity), int(total / (FULL * capacity)))
    return whole if whole.rows <= enough else _filled(whole, capacity, enough)


def best_fit(counts: np.ndarray, capacity: int) -> np.ndarray:
    """The row (int32) of each item, items being numbered from the largest to the smallest."""
    row_of = np.empty(int(counts.sum()), np.int32)
    spaces: list[int] = []  # free spaces that some row has, ascending
    rows_with: dict[int, list[np.ndarray]] = defaultdict(list)

    def put_back(rows: np.ndarray, space: int) -> None:
        if len(rows) and space:
            if not rows_with[space]:
                insort(spaces, space)
            rows_with[space].append(rows)

    done = opened = 0
    for size in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[size])
        while left:
            tightest = bisect_left(spaces, size)
            if tightest < len(spaces):
                space = spaces[tightest]
                rows = rows_with[space].pop()
                if not rows_with[space]:
                    del spaces[tightest]
            else:
                space = capacity
                rows = np.arange(opened, opened + -(-left // (capacity // size)), dtype=np.int32)
                opened += len(rows)
            # A row that takes one item becomes the tightest for the next of the same size, so it takes as many as fit.
            each = space // size
            used = min(len(rows), -(-left // each))
            placed = min(left, used * each)
            row_of[done : done + placed] = np.repeat(rows[:used], each)[:placed]
            put_back(rows[used:], space)
            put_back(rows[: used - 1], space - each * size)
            put_back(rows[used - 1 : used], space - (placed - (used - 1) * each) * size)
            done, left = done + placed, left - placed
    return row_of


def _filled(packing: Packing, capacity: int, rows: int) -> Packing:
    """The same items in only `rows` rows: those of the emptiest rows are concatenated and cut into the others' gaps."""
    used = np.bincount(packing.row, packing.length).astype(np.int64)
    fullest_first = np.argsort(-used, kind="stable")
    number = np.empty(len(used), np.int32)
    number[fullest_first] = np.arange(len(used))
    row = number[packing.row]
    kept, moved = np.flatnonzero(row < rows), np.flatnonzero(row >= rows)

    item_ends = np.cumsum(packing.length[moved], dtype=np.int64)
    gap_rows = np.arange(rows, dtype=np.int32)[::-1]  # the largest gaps first: the fewest cuts
    gap_ends = np.cumsum(capacity - used[fullest_first[gap_rows]])
    ends = np.union1d(item_ends, gap_ends[gap_ends < item_ends[-1]])
    ends = ends[ends > 0]
    begins = np.concatenate([[0], ends[:-1]])
    cut = np.searchsorted(item_ends, begins, "right")
    offset = begins - (item_ends - packing.length[moved])[cut]
    return Packing(
        rows,
        np.concatenate([row[kept], gap_rows[np.searchsorted(gap_ends, begins, "right")]]),
        np.concatenate([packing.item[kept], packing.item[moved[cut]]]),
        np.concatenate([packing.offset[kept], offset.astype(np.int32)]),
        np.concatenate([packing.length[kept], (ends - begins).astype(np.int32)]),
    )
