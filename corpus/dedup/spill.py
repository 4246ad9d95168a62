"""Group more pages by key than fit in memory: hash-range partitions in files, sorted one at a time."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ENTRY = 12  # bytes of an entry on disk: a key and a page
# Bytes of an entry while its partition is sorted: keys, pages, order, sorted keys and pages.
SORTING = 48
MAX_PARTITIONS = 4096
MIN_BUFFER = 1 << 12  # entries


class Partitions:
    """(key, page) entries, distributed over files by the highest bits of the key.

    `expected`: approximate number of entries. `memory`: bytes that this may use. The groups that come out do not
    depend on either. `number`: the data type of pages, or of whatever is grouped.
    """

    def __init__(self, folder: Path, expected: int, memory: int, number: type[np.integer[Any]] = np.uint32):
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.bits, self.number = 0, number
        while expected * SORTING > memory << self.bits and 1 << self.bits < MAX_PARTITIONS:
            self.bits += 1
        self._buffer: list[tuple[np.ndarray, np.ndarray]] = []
        self._buffered, self._limit = 0, max(MIN_BUFFER, memory // SORTING)

    def add(self, keys: np.ndarray, pages: np.ndarray) -> None:
        """Add (N,) uint64 keys and their (N,) pages."""
        self._buffer.append((keys, pages.astype(self.number)))
        self._buffered += len(keys)
        if self._buffered >= self._limit:
            self._flush()

    def _flush(self) -> None:
        if not self._buffered:
            return
        keys, pages = (np.concatenate(part) for part in zip(*self._buffer, strict=True))
        self._buffer, self._buffered = [], 0
        if self.bits:
            part = (keys >> np.uint64(64 - self.bits)).astype(np.uint16)
            order = np.argsort(part, kind="stable")
            ends = np.cumsum(np.bincount(part, minlength=1 << self.bits))
            keys, pages = keys[order], pages[order]
        else:
            ends = np.array([len(keys)])
        start = 0
        for number, end in enumerate(ends.tolist()):
            if end > start:
                with open(self.folder / f"{number}.keys", "ab") as file:
                    keys[start:end].tofile(file)
                with open(self.folder / f"{number}.pages", "ab") as file:
                    pages[start:end].tofile(file)
            start = end

    def groups(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pages that share a key with another page: (pages, first position of each group), partition by partition.

        Groups are in the order of their keys, pages of a group in ascending order. Each partition's files are removed
        once read.
        """
        if self.bits == 0:  # everything fits in memory: no files needed
            buffer, self._buffer, self._buffered = self._buffer, [], 0
            written = self.folder / "0.keys"
            if buffer and not written.is_file():
                keys, pages = (np.concatenate(part) for part in zip(*buffer, strict=True))
                yield from _groups(keys, pages)
                shutil.rmtree(self.folder)
                return
            self._buffer, self._buffered = buffer, sum(len(keys) for keys, _ in buffer)
        self._flush()
        for number in range(1 << self.bits):
            files = [self.folder / f"{number}.keys", self.folder / f"{number}.pages"]
            if files[0].is_file():
                keys, pages = np.fromfile(files[0], dtype=np.uint64), np.fromfile(files[1], dtype=self.number)
                for file in files:
                    file.unlink()
                yield from _groups(keys, pages)
        shutil.rmtree(self.folder)


def _groups(keys: np.ndarray, pages: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    # np.sort is three times as fast as np.argsort. So the lowest bits of each key are replaced by its position; keys
    # that agree in the other bits, nearly always equal ones, are compared in full afterwards.
    low = np.uint64((1 << max(1, (len(keys) - 1).bit_length())) - 1)
    packed = (keys & ~low) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    rows = packed[_shared(packed | low)] & low
    keys, pages = keys[rows], pages[rows].astype(np.int64)
    order = np.lexsort((pages, keys))
    order = order[_shared(keys[order])]
    if len(order):
        keys = keys[order]
        yield pages[order], np.concatenate(([0], np.flatnonzero(keys[1:] != keys[:-1]) + 1))


def _shared(ordered: np.ndarray) -> np.ndarray:
    """Which of the sorted values equal a neighbour: (N,) bool."""
    same = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(ordered), dtype=bool)
    shared[1:] |= same
    shared[:-1] |= same
    return shared


def take_ragged(values: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """values[starts[0] : starts[0] + counts[0]], values[starts[1] : …], … one after another."""
    before = np.cumsum(counts) - counts
    return values[np.repeat(starts - before, counts) + np.arange(counts.sum())]
