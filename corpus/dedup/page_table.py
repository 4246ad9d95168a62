"""What deduplication holds of every page: its crawl, and in files its length and its record id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpus.dedup.signatures import Batch
from corpus.dedup.spill import take_ragged

IDS_AT_ONCE = 1 << 16  # record ids read at once; a megabyte for each thousand


@dataclass(frozen=True)
class Crawls:
    """The crawl that each page belongs to.

    `starts`: the first page of each crawl, oldest first, and the number of pages at the end. `fixed`: the number of
    crawls, the oldest, whose pages are not dropped any more. `within`: whether pages of one crawl are compared with
    each other; not needed where each crawl was deduplicated by itself.
    """

    starts: np.ndarray
    fixed: int = 0
    within: bool = True

    @classmethod
    def one(cls, n_pages: int) -> Crawls:
        """A single crawl."""
        return cls(np.array([0, n_pages]))

    def of(self, pages: np.ndarray) -> np.ndarray:
        """The number of each page's crawl, 0 for the oldest."""
        return np.searchsorted(self.starts, pages, side="right") - 1

    def compares(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Which pairs of pages could drop one of the two: (N,) bool."""
        one, other = self.of(a), self.of(b)
        return (np.maximum(one, other) >= self.fixed) & (self.within | (one != other))


class PageTable:
    """Lengths and record ids of all pages, in files, and the order in which pages are preferred."""

    def __init__(self, folder: Path, crawls: Crawls):
        self.folder, self.crawls = folder, crawls

    @contextmanager
    def writing(self) -> Iterator[Callable[[Batch], None]]:
        """Yield a function that appends a batch; batches in order."""
        self.folder.mkdir()
        end = 0
        with (
            open(self.folder / "lengths", "wb") as lengths,
            open(self.folder / "ids", "wb") as ids,
            open(self.folder / "ends", "wb") as ends,
        ):

            def add(batch: Batch) -> None:
                nonlocal end
                batch.numbers("length").astype(np.int64).tofile(lengths)
                names = batch.columns.column("record_id")
                offsets = np.frombuffer(names.buffers()[1], dtype=np.int32)[names.offset :][: len(batch) + 1]
                ids.write(memoryview(names.buffers()[2])[offsets[0] : offsets[-1]])
                (offsets[1:] - offsets[0] + np.int64(end)).tofile(ends)
                end += int(offsets[-1] - offsets[0])

            yield add

    def lengths(self, pages: np.ndarray) -> np.ndarray:
        """Characters of pages' texts: (N,) int64."""
        return np.asarray(np.memmap(self.folder / "lengths", dtype=np.int64, mode="r")[pages])

    def ids(self, pages: np.ndarray) -> np.ndarray:
        """Record ids in UTF-8: (N,) bytes."""
        if not len(pages):
            return np.zeros(0, dtype="S1")
        ends = np.memmap(self.folder / "ends", dtype=np.int64, mode="r")
        blob = np.memmap(self.folder / "ids", dtype=np.uint8, mode="r")
        start = np.where(pages > 0, ends[np.maximum(pages - 1, 0)], 0)
        counts = ends[pages] - start
        matrix = np.zeros((len(pages), int(counts.max())), dtype=np.uint8)
        places = np.arange(matrix.shape[1])
        for low in range(0, len(pages), IDS_AT_ONCE):
            here = slice(low, low + IDS_AT_ONCE)
            matrix[here][places < counts[here, None]] = take_ragged(blob, start[here], counts[here])
        return matrix.reshape(-1).view(f"S{matrix.shape[1]}")

    def rank(self, pages: np.ndarray) -> np.ndarray:
        """The rank of each page among these: oldest crawl, then longest text, then smallest record id. (N,) int64."""
        if not len(pages):
            return pages
        crawl, shortness = self.crawls.of(pages), -self.lengths(pages)
        order = np.lexsort((shortness, crawl))
        tie = (np.diff(crawl[order]) == 0) & (np.diff(shortness[order]) == 0)
        tied = np.zeros(len(pages), dtype=bool)
        tied[1:] |= tie
        tied[:-1] |= tie
        run = np.concatenate(([0], np.cumsum(~tie)))[tied]
        among = order[tied]
        order[tied] = among[np.lexsort((pages[among], self.ids(pages[among]), run))]
        rank = np.empty(len(pages), dtype=np.int64)
        rank[order] = np.arange(len(pages))
        return rank
