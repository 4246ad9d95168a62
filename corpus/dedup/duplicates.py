"""Duplicates by URL, by text and by nearly the same text; within one crawl, or against older crawls.

MinHash-LSH (Broder 1997; bands as in Leskovec et al., "Mining of Massive Datasets", ch. 3) only proposes pairs.
Every proposed pair is verified by the exact Jaccard similarity of the two pages' shingles before it counts, since
half of what LSH proposes is false. Of a cluster the page of the oldest crawl is kept, then the longest text, then the
smallest record id, so that the result depends neither on the order of the pages nor on the memory allowed. Memory
holds two bytes a page, the partition or the chunk in work, the verified pairs and the dropped pages; the rest is in
files (docs/deduplication.md has the numbers).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from core.errors import DataError
from corpus.config import CleanConfig
from corpus.dedup.page_table import Crawls, PageTable
from corpus.dedup.signatures import NEAR, TEXT, URL, Batch
from corpus.dedup.similar import HasShingles, components, pack, similarities, unpack
from corpus.dedup.spill import Partitions

ALL_PAIRS = (
    64  # largest bucket of which every pair is verified; in a larger one, each page against leaders only
)
LEADERS = (1, 2, 4, 8, 16, 32, 64)  # leaders of a large bucket, round by round
RULES = {URL: "duplicate_url", TEXT: "duplicate_text", NEAR: "near_duplicate"}


class Pages(HasShingles, Protocol):
    """What deduplication reads: corpus.dedup.signatures.SignatureFiles, or a synthetic source."""

    n_pages: int

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """All pages in order, with the columns asked for."""
        ...

    def strings(self, name: str, pages: np.ndarray) -> list[str | None]:
        """A column of strings, of sorted pages."""
        ...


@dataclass
class Duplicates:
    """The dropped pages, sorted, and the page that is kept instead of each."""

    pages: np.ndarray  # (D,) int64
    kept: np.ndarray  # (D,) int64
    step: np.ndarray  # (D,) uint8: URL, TEXT or NEAR
    # (D,) highest Jaccard similarity measured; 1 for the exact steps, NaN where none was measured.
    value: np.ndarray
    crawl: np.ndarray  # (D,) int64, number of the crawl of `kept`
    kept_ids: pa.Array  # (D,) string, record ids of `kept`


def find_duplicates(
    pages: Pages,
    config: CleanConfig,
    folder: Path,
    crawls: Crawls | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Duplicates:
    """Find duplicates by URL, then by text, then near-duplicates, each step among the pages that the one before left.

    `folder`: for temporary files. Memory: config.dedup_memory_mb. Raises DataError for more than 2^32 pages.
    """
    if pages.n_pages >= 1 << 32:
        raise DataError(
            f"{pages.n_pages:,} pages are more than one pass of deduplication takes (4,294,967,295). "
            "Clean them as several crawls, each against the ones before."
        )
    return _Search(pages, config, Path(folder), crawls or Crawls.one(pages.n_pages), log).run()


class _Search:
    """One run of find_duplicates: what is known of all pages, and the steps over them."""

    def __init__(
        self, pages: Pages, config: CleanConfig, folder: Path, crawls: Crawls, log: Callable[[str], None]
    ):
        self.pages, self.config, self.crawls, self.log = pages, config, crawls, log
        self.folder, self.memory = folder, config.dedup_memory_mb << 20
        self.reached = np.zeros(pages.n_pages, dtype=np.uint8)  # the last step that each page takes part in
        self.dropped_before = np.zeros(pages.n_pages, dtype=bool)  # when the page's own crawl was cleaned
        # (2, L): pages of those whose kept page is among ours, sorted, and that kept page.
        self.links = np.zeros((2, 0), dtype=np.int64)
        self.table: PageTable
        self.found: list[tuple[np.ndarray, np.ndarray, int, np.ndarray]] = []

    def run(self) -> Duplicates:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        try:
            self.table = PageTable(self.folder / "table", self.crawls)
            self._read_table()
            for step, wanted in ((URL, self.config.dedup_urls), (TEXT, self.config.dedup_texts)):
                if wanted and self.pages.n_pages:
                    self._exact(step)
            if self.config.dedup_near and self.pages.n_pages:
                self._near()
            return self._result()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _read_table(self) -> None:
        """Write the page table; read which pages were dropped when their own crawls were cleaned."""
        several = len(self.crawls.starts) > 2
        clusters = Partitions(self.folder / "clusters", self.pages.n_pages, self.memory // 2)
        with self.table.writing() as add:
            for batch in self.pages.batches(
                ["record_id", "length", "reached", *(["duplicate_of"] if several else [])]
            ):
                add(batch)
                here = slice(batch.first, batch.first + len(batch))
                self.reached[here] = batch.numbers("reached")
                if several:
                    ids, kept = batch.strings("record_id"), batch.strings("duplicate_of")
                    self.dropped_before[here] = [other is not None for other in kept]
                    names = (
                        (own if other is None else other) or "" for own, other in zip(ids, kept, strict=True)
                    )
                    keys = (xxhash.xxh3_64_intdigest(name.encode()) for name in names)
                    clusters.add(np.fromiter(keys, np.uint64, len(batch)), np.arange(here.start, here.stop))
        links = [self.links]
        for members, starts in clusters.groups():
            members, head = _group_heads(members, starts, self.dropped_before[members])
            links.append(np.stack((members, head))[:, (members != head) & self.dropped_before[members]])
        found = np.concatenate(links, axis=1)
        self.links = found[:, np.argsort(found[0])]
        self.log(f"{self.pages.n_pages:,} pages read")

    def _may_drop(self, pages: np.ndarray, kept: np.ndarray) -> np.ndarray:
        crawl = self.crawls.of(pages)
        compared = self.crawls.within | (self.crawls.of(kept) < crawl)
        return (pages != kept) & ~self.dropped_before[pages] & (crawl >= self.crawls.fixed) & compared

    def _record(self, pages: np.ndarray, kept: np.ndarray, step: int, value: np.ndarray) -> None:
        drop = self._may_drop(pages, kept)
        self.reached[pages[drop]] = step
        self.found.append((pages[drop], kept[drop], step, value[drop]))

    # Same key

    def _exact(self, step: int) -> None:
        column = {URL: "url", TEXT: "text"}[step]
        keys = Partitions(self.folder / column, self.pages.n_pages, self.memory // 2)
        for batch in self.pages.batches([column]):
            rows = np.flatnonzero(self.reached[batch.first : batch.first + len(batch)] >= step)
            keys.add(batch.numbers(column)[rows], rows + batch.first)
        for members, starts in keys.groups():
            members, best = _group_heads(members, starts, self.table.rank(members))
            self._record(members, best, step, np.ones(len(members)))
        if step == URL:  # where the kept page of a cluster was dropped, the rest of it takes part no longer
            dropped, head = self.links
            self.reached[dropped[self.reached[head] == URL]] = URL
        self.log(f"{RULES[step]}: {sum(len(part[0]) for part in self.found):,} pages dropped so far")

    # Nearly the same text

    def _near(self) -> None:
        pairs, buckets = self._proposed()
        self.log(f"{len(pairs):,} pairs proposed, {len(buckets):,} large buckets")
        pairs = np.unique(np.concatenate([pairs, *(_stars(b[:1], b[1:]) for b in buckets)]))
        similar, value = self._verified(pairs)
        tried = pairs
        for leaders in LEADERS[1:]:
            buckets = self._unresolved(buckets, similar)
            more = [_all_pairs(b) if len(b) <= ALL_PAIRS else _stars(b[:leaders], b) for b in buckets]
            pairs = np.setdiff1d(np.concatenate([tried[:0], *more]), tried)
            found, found_value = self._verified(pairs)
            similar, value = np.concatenate((similar, found)), np.concatenate((value, found_value))
            tried = np.concatenate((tried, pairs))
            buckets = [bucket for bucket in buckets if len(bucket) > ALL_PAIRS]
        self.log(f"{len(similar):,} of {len(tried):,} pairs are similar")
        self._drop_clusters(similar, value)

    def _proposed(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Packed pairs of pages that share a band, sorted; and the buckets too large for that, best pages first."""
        bands = self.config.minhash_bands
        keys = Partitions(self.folder / "bands", self.pages.n_pages * bands, self.memory // 2)
        for batch in self.pages.batches(["bands"]):
            rows = np.flatnonzero(self.reached[batch.first : batch.first + len(batch)] >= NEAR)
            keys.add(batch.bands()[rows].ravel(), np.repeat(rows + batch.first, bands))
        buffer, buffered = [np.zeros(0, dtype=np.uint64)], 0
        large: dict[bytes, np.ndarray] = {}
        for members, starts in keys.groups():
            sizes = np.diff(np.append(starts, len(members)))
            for pairs in _small_pairs(members, starts, sizes):
                pairs = self._comparable(pairs)
                buffer.append(pairs)
                buffered += len(pairs)
                if buffered * 8 > self.memory // 8:  # the same pair comes from many bands
                    buffer, buffered = [np.unique(np.concatenate(buffer))], 0
            for place in np.flatnonzero(sizes > ALL_PAIRS).tolist():
                bucket = members[starts[place] : starts[place] + sizes[place]]
                large[xxhash.xxh3_128_digest(bucket.tobytes())] = bucket
        return np.unique(np.concatenate(buffer)), self._best_first(list(large.values()))

    def _comparable(self, pairs: np.ndarray) -> np.ndarray:
        """Those pairs that could drop a page."""
        if len(self.crawls.starts) == 2:
            return pairs
        return pairs[self.crawls.compares(*unpack(pairs))]

    def _best_first(self, buckets: list[np.ndarray]) -> list[np.ndarray]:
        if not buckets:
            return []
        pages = np.unique(np.concatenate(buckets))
        rank = self.table.rank(pages)
        ordered = [bucket[np.argsort(rank[np.searchsorted(pages, bucket)])] for bucket in buckets]
        return sorted(ordered, key=lambda bucket: bucket.tolist()[:2])

    def _verified(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs = self._comparable(pairs)
        return similarities(
            pairs,
            self.pages,
            self.table.lengths,
            self.config.jaccard,
            self.folder / "chunks",
            self.memory // 2,
        )

    def _edges(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of all edges between pages: verified pairs, and what earlier runs found."""
        a, b = unpack(pairs)
        near = (self.reached[self.links] >= NEAR).all(axis=0)
        return np.concatenate((a, self.links[0, near])), np.concatenate((b, self.links[1, near]))

    def _unresolved(self, buckets: list[np.ndarray], pairs: np.ndarray) -> list[np.ndarray]:
        """Of each bucket the best page of every cluster, where there is more than one cluster."""
        if not buckets:
            return []
        nodes, label = components(*self._edges(pairs))
        left = []
        for bucket in buckets:
            place = np.searchsorted(nodes, bucket).clip(max=len(nodes) - 1)
            joined = nodes[place] == bucket if len(nodes) else np.zeros(len(bucket), dtype=bool)
            cluster = np.where(joined, label[place] if len(nodes) else 0, -1 - np.arange(len(bucket)))
            _, first = np.unique(cluster, return_index=True)
            if len(first) > 1:
                left.append(bucket[np.sort(first)])
        return left

    def _drop_clusters(self, pairs: np.ndarray, value: np.ndarray) -> None:
        """Join similar pages into clusters and keep one page of each.

        Crawl by crawl, so that no page joins clusters of older crawls.
        """
        a, b = self._edges(pairs)
        pages = np.unique(np.concatenate((a, b)))
        nearest, rank = np.full(len(pages), np.nan), self.table.rank(pages)
        for side in unpack(pairs):
            np.fmax.at(nearest, np.searchsorted(pages, side), value)
        for crawl in range(self.crawls.fixed, len(self.crawls.starts) - 1):
            end = self.crawls.starts[crawl + 1]
            here = (a < end) & (b < end)
            nodes, label = components(a[here], b[here])
            order = np.lexsort((rank[np.searchsorted(pages, nodes)], label))
            first = np.concatenate(([True], np.diff(label[order]) != 0))[: len(order)]
            best = nodes[order[first]][label]
            own = nodes >= self.crawls.starts[crawl]
            measured = nearest[np.searchsorted(pages, nodes[own])]
            self._record(nodes[own], best[own], NEAR, measured)

    def _result(self) -> Duplicates:
        if not self.found:
            self.found.append((self.links[0, :0], self.links[0, :0], NEAR, np.zeros(0)))
        pages, kept, value = (np.concatenate([part[i] for part in self.found]) for i in (0, 1, 3))
        step = np.repeat([part[2] for part in self.found], [len(part[0]) for part in self.found])
        order = np.argsort(pages)
        pages, kept, step, value = pages[order], kept[order], step[order].astype(np.uint8), value[order]
        while True:  # to the page that is kept in the end
            further = _follow(_follow(kept, pages, kept), *self.links)
            if (further == kept).all():
                break
            kept = further
        ids = pa.array(self.table.ids(kept), pa.binary()).cast(pa.string())
        # Where the kept page is in none of our files, only its record id is known.
        absent = np.flatnonzero(self.dropped_before[kept])
        if len(absent):
            followers, place = np.unique(kept[absent], return_inverse=True)
            names = pa.array(self.pages.strings("duplicate_of", followers)).take(pa.array(place))
            mask = np.zeros(len(kept), dtype=bool)
            mask[absent] = True
            ids = pc.replace_with_mask(ids, mask, names)
        return Duplicates(pages, kept, step, value, self.crawls.of(kept), ids)


def _group_heads(members: np.ndarray, starts: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The members with the lowest rank of each group first, and for each member the first of its group."""
    sizes = np.diff(np.append(starts, len(members)))
    group = np.repeat(np.arange(len(starts)), sizes)
    members = members[np.lexsort((members, rank, group))]
    return members, members[starts][group]


def _follow(pages: np.ndarray, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Each page's target where it has one (`sources` sorted), else the page."""
    if not len(sources):
        return pages
    place = np.searchsorted(sources, pages).clip(max=len(sources) - 1)
    return np.where(sources[place] == pages, targets[place], pages)


def _small_pairs(members: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """All packed pairs within the groups of at most ALL_PAIRS members, a million or so at a time."""
    for size in np.unique(sizes[sizes <= ALL_PAIRS]).tolist():
        one, other = np.triu_indices(size, 1)
        of_size = starts[sizes == size]
        at_once = max(1, (1 << 20) // len(one))
        for low in range(0, len(of_size), at_once):
            group = members[of_size[low : low + at_once, None] + np.arange(size)]
            yield pack(group[:, one].ravel(), group[:, other].ravel())


def _stars(leaders: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Each leader paired with every other page."""
    one, other = np.repeat(leaders, len(others)), np.tile(others, len(leaders))
    return pack(one[one != other], other[one != other])


def _all_pairs(pages: np.ndarray) -> np.ndarray:
    one, other = np.triu_indices(len(pages), 1)
    return pack(pages[one], pages[other])
