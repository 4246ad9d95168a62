"""Best-fit-decreasing by sizes gives the same as item by item, and no token is lost."""

import numpy as np
import pytest

from model.data.packing import FULL, best_fit, pack

CAPACITY = 64


def item_by_item(sizes: list[int]) -> list[int]:
    """Free space of each row, by the textbook algorithm."""
    free: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row, space in enumerate(free) if space >= size]
        if fitting:
            free[min(fitting, key=lambda row: free[row])] -= size
        else:
            free.append(CAPACITY - size)
    return free


def counts_of(sizes) -> np.ndarray:
    return np.bincount(sizes, minlength=CAPACITY + 1)


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_as_full_as_packing_item_by_item_makes_them(seed):
    draw = np.random.default_rng(seed)
    sizes = np.clip(draw.lognormal(draw.uniform(1, 4), 0.8, 300), 1, CAPACITY).astype(int)
    row = best_fit(counts_of(sizes), CAPACITY)
    used = np.bincount(row, np.sort(sizes)[::-1]).astype(int)
    assert sorted(CAPACITY - used) == sorted(item_by_item(sizes.tolist()))


@pytest.mark.parametrize("sizes", [[40] * 1000, [33] * 700 + [32] * 10 + [60] * 90, [64] * 5, [1] * 3, []])
def test_every_token_has_one_place_and_rows_are_full(sizes):
    packed = pack(counts_of(np.array(sizes, int)), CAPACITY)
    total = sum(sizes)
    assert total / (max(1, packed.rows) * CAPACITY) >= FULL or packed.rows == -(-total // CAPACITY)
    used = np.bincount(packed.row, packed.length, packed.rows)
    assert (used > 0).all() and (used <= CAPACITY).all()
    # The pieces of an item, in order of their offsets, are the item; and no two of them share a row.
    from_largest = sorted(sizes, reverse=True)
    found: dict[int, list[tuple[int, int]]] = {}
    for item, offset, length in zip(packed.item, packed.offset, packed.length, strict=True):
        found.setdefault(int(item), []).append((int(offset), int(length)))
    assert len(found) == len(sizes)
    for item, pieces in found.items():
        end = 0
        for offset, length in sorted(pieces):
            assert offset == end and length > 0
            end += length
        assert end == from_largest[item]
    assert len(set(zip(packed.row, packed.item, strict=True))) == len(packed.row)


def test_items_that_fit_together_are_not_cut():
    sizes = np.random.default_rng(0).integers(1, 20, 5000)
    assert not pack(counts_of(sizes), CAPACITY).offset.any()
