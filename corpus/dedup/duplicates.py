"""One page of each: same address, same text, nearly the same text; of one crawl or of a crawl and its elders.

MinHash-LSH (Broder 1997; bands as in Leskovec et al., "Mining of Massive Datasets", ch. 3) only proposes pairs.
Every proposed pair is verified by the true Jaccard similarity of the two pages' shingles before it counts, since
half of what LSH proposes is false. Of a cluster the page of the oldest crawl stays, then the longest text, then the
smallest record id, so that the answer depends neither on the order in which pages came nor on the memory allowed.
Memory holds one byte a page, the partition or the chunk at work, and the pairs and the pages that go; the rest lies
in files (docs/deduplication.md has the sums).
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from corpus.config import CleanConfig
from corpus.dedup.signatures import NEAR, TEXT, URL, Batch
from corpus.dedup.similar import HasShingles, components, pack, similarities, unpack
from corpus.dedup.spill import Partitions, take_ragged

ALL_PAIRS = 64  # members of a bucket up to which every pair is verified; beyond, each against leaders only
LEADERS = (1, 2, 4, 8, 16, 32, 64)  # that many of a large bucket's pages, round by round
IDS_AT_ONCE = 1 << 16  # record ids read at once; a megabyte each thousand
RULES = {URL: "duplicate_url", TEXT: "duplicate_text", NEAR: "near_duplicate"}


class Pages(HasShingles, Protocol):
    """What deduplication reads: corpus.dedup.signatures.SignatureFiles, or something that makes it up."""

    n_pages: int

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """All pages in order, with the columns asked for."""
        ...

    def strings(self, name: str, pages: np.ndarray) -> list[str | None]:
        """A column of strings, of sorted pages."""
        ...


@dataclass(frozen=True)
class Crawls:
    """Which pages belong together. `starts`: the first page of each crawl, oldest first, and the number of pages.

    `settled`: that many crawls, the oldest, have no page to lose any more. `inside`: whether pages of one crawl are
    compared with each other; no need of it where each crawl was cleaned by itself.
    """

    starts: np.ndarray
    settled: int = 0
    inside: bool = True

    @classmethod
    def one(cls, n_pages: int) -> "Crawls":
        """A single crawl."""
        return cls(np.array([0, n_pages]))

    def of(self, pages: np.ndarray) -> np.ndarray:
        """The number of each page's crawl, 0 for the oldest."""
        return np.searchsorted(self.starts, pages, side="right") - 1

    def compares(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Which pairs could make a page go: (N,) bool."""
        one, other = self.of(a), self.of(b)
        return (np.maximum(one, other) >= self.settled) & (self.inside | (one != other))


@dataclass
class Gone:
    """Pages that go, sorted, and the page that stays in the place of each."""

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
) -> Gone:
    """All pages that go. First same URL, then same text, then near-duplicates, each among what was left before.

    `folder`: for files; removed afterwards. Memory: config.dedup_memory_mb. Raises ValueError for more than 2^32
    pages.
    """
    if pages.n_pages >= 1 << 32:
        raise ValueError(
            f"{pages.n_pages:,} pages are more than one pass of deduplication takes (4,294,967,295). "
            "Clean them as several crawls, each against the ones before."
        )
    return _Search(pages, config, Path(folder), crawls or Crawls.one(pages.n_pages), log).run()


class _Search:
    """One run of find_duplicates: what is known of all pages, and the steps over them."""

    def __init__(self, pages: Pages, config: CleanConfig, folder: Path, crawls: Crawls, log: Callable):
        self.pages, self.config, self.crawls, self.log = pages, config, crawls, log
        self.folder, self.memory = folder, config.dedup_memory_mb << 20
        self.reached = np.zeros(pages.n_pages, dtype=np.uint8)  # the last step that each page takes part in
        self.went = np.zeros(pages.n_pages, dtype=bool)  # gone when its own crawl was cleaned
        # Those of them whose kept page is among ours, and that page.
        self.elders = np.zeros((2, 0), dtype=np.int64)
        self.table: PageTable
        self.found: list[tuple[np.ndarray, np.ndarray, int, np.ndarray]] = []

    def run(self) -> Gone:
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
        """Lay out lengths and record ids, and learn which pages went when their crawls were cleaned."""
        known = len(self.crawls.starts) > 2
        clusters = Partitions(self.folder / "clusters", self.pages.n_pages, self.memory // 2)
        with self.table.writing() as add:
            for batch in self.pages.batches(
                ["record_id", "length", "reached", *(["duplicate_of"] if known else [])]
            ):
                add(batch)
                here = slice(batch.first, batch.first + len(batch))
                self.reached[here] = batch.numbers("reached")
                if known:
                    ids, stays = batch.strings("record_id"), batch.strings("duplicate_of")
                    self.went[here] = [other is not None for other in stays]
                    names = (own if other is None else other for own, other in zip(ids, stays, strict=True))
                    keys = (xxhash.xxh3_64_intdigest(name.encode()) for name in names)
                    clusters.add(np.fromiter(keys, np.uint64, len(batch)), np.arange(here.start, here.stop))
        links = [self.elders]
        for members, starts in clusters.groups():
            members, head = _heads(members, starts, self.went[members])
            links.append(np.stack((members, head))[:, (members != head) & self.went[members]])
        elders = np.concatenate(links, axis=1)
        self.elders = elders[:, np.argsort(elders[0])]
        self.log(f"{self.pages.n_pages:,} pages read")

    def _may_go(self, pages: np.ndarray, kept: np.ndarray) -> np.ndarray:
        crawl = self.crawls.of(pages)
        inside = self.crawls.inside | (self.crawls.of(kept) < crawl)
        return (pages != kept) & ~self.went[pages] & (crawl >= self.crawls.settled) & inside

    def _record(self, pages: np.ndarray, kept: np.ndarray, step: int, value: np.ndarray) -> None:
        go = self._may_go(pages, kept)
        self.reached[pages[go]] = step
        self.found.append((pages[go], kept[go], step, value[go]))

    # Same key

    def _exact(self, step: int) -> None:
        column = {URL: "url", TEXT: "text"}[step]
        keys = Partitions(self.folder / column, self.pages.n_pages, self.memory // 2)
        for batch in self.pages.batches([column]):
            rows = np.flatnonzero(self.reached[batch.first : batch.first + len(batch)] >= step)
            keys.add(batch.numbers(column)[rows], rows + batch.first)
        for members, starts in keys.groups():
            members, best = _heads(members, starts, self.table.rank(members))
            self._record(members, best, step, np.ones(len(members)))
        if step == URL:  # what stood for pages of its own crawl, and is another version of an older page
            follower, head = self.elders
            self.reached[follower[self.reached[head] == URL]] = URL
        self.log(f"{RULES[step]}: {sum(len(part[0]) for part in self.found):,} pages gone so far")

    # Nearly the same text

    def _near(self) -> None:
        pairs, buckets = self._proposed()
        self.log(f"{len(pairs):,} pairs proposed, {len(buckets):,} large buckets")
        pairs = np.unique(np.concatenate([pairs, *(_stars(b[:1], b[1:]) for b in buckets)]))
        known, value = self._verified(pairs)
        tried = pairs
        for leaders in LEADERS[1:]:
            buckets = self._unresolved(buckets, known)
            pairs = [_all_pairs(b) if len(b) <= ALL_PAIRS else _stars(b[:leaders], b) for b in buckets]
            pairs = np.setdiff1d(np.concatenate([tried[:0], *pairs]), tried)
            more, its_value = self._verified(pairs)
            known, value = np.concatenate((known, more)), np.concatenate((value, its_value))
            tried = np.concatenate((tried, pairs))
            buckets = [bucket for bucket in buckets if len(bucket) > ALL_PAIRS]
        self.log(f"{len(known):,} of {len(tried):,} pairs are similar")
        self._settle(known, value)

    def _proposed(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Packed pairs of pages that share a band, sorted; and the buckets too large for that, best pages first."""
        bands = self.config.minhash_bands
        keys = Partitions(self.folder / "bands", self.pages.n_pages * bands, self.memory // 2)
        for batch in self.pages.batches(["bands"]):
            rows = np.flatnonzero(self.reached[batch.first : batch.first + len(batch)] >= NEAR)
            keys.add(batch.bands()[rows].ravel(), np.repeat(rows + batch.first, bands))
        buffer, buffered, large = [np.zeros(0, dtype=np.uint64)], 0, {}
        for members, starts in keys.groups():
            sizes = np.diff(np.append(starts, len(members)))
            for pairs in _small_pairs(members, starts, sizes):
                pairs = self._worth(pairs)
                buffer.append(pairs)
                buffered += len(pairs)
                if buffered * 8 > self.memory // 8:  # the same pair comes from many bands
                    buffer, buffered = [np.unique(np.concatenate(buffer))], 0
            for place in np.flatnonzero(sizes > ALL_PAIRS).tolist():
                bucket = members[starts[place] : starts[place] + sizes[place]]
                large[xxhash.xxh3_128_digest(bucket.tobytes())] = bucket
        return np.unique(np.concatenate(buffer)), self._best_first(list(large.values()))

    def _worth(self, pairs: np.ndarray) -> np.ndarray:
        """Those pairs that could make a page go."""
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
        pairs = self._worth(pairs)
        return similarities(
            pairs,
            self.pages,
            self.table.lengths,
            self.config.jaccard,
            self.folder / "chunks",
            self.memory // 2,
        )

    def _edges(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of all that joins pages: verified pairs, and what earlier runs found."""
        a, b = unpack(pairs)
        near = (self.reached[self.elders] >= NEAR).all(axis=0)
        return np.concatenate((a, self.elders[0, near])), np.concatenate((b, self.elders[1, near]))

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

    def _settle(self, pairs: np.ndarray, value: np.ndarray) -> None:
        """Join what is similar, crawl by crawl, so that no younger page decides between older ones."""
        a, b = self._edges(pairs)
        pages = np.unique(np.concatenate((a, b)))
        nearest, rank = np.full(len(pages), np.nan), self.table.rank(pages)
        for side in unpack(pairs):
            np.fmax.at(nearest, np.searchsorted(pages, side), value)
        for crawl in range(self.crawls.settled, len(self.crawls.starts) - 1):
            end = self.crawls.starts[crawl + 1]
            here = (a < end) & (b < end)
            nodes, label = components(a[here], b[here])
            order = np.lexsort((rank[np.searchsorted(pages, nodes)], label))
            first = np.concatenate(([True], np.diff(label[order]) != 0))[: len(order)]
            best = nodes[order[first]][label]
            mine = nodes >= self.crawls.starts[crawl]
            measured = nearest[np.searchsorted(pages, nodes[mine])]
            self._record(nodes[mine], best[mine], NEAR, measured)

    def _result(self) -> Gone:
        if not self.found:
            self.found.append((self.elders[0, :0], self.elders[0, :0], NEAR, np.zeros(0)))
        pages, kept, value = (np.concatenate([part[i] for part in self.found]) for i in (0, 1, 3))
        step = np.repeat([part[2] for part in self.found], [len(part[0]) for part in self.found])
        order = np.argsort(pages)
        pages, kept, step, value = pages[order], kept[order], step[order].astype(np.uint8), value[order]
        while True:  # to the page that stays in the end
            further = _follow(_follow(kept, pages, kept), *self.elders)
            if (further == kept).all():
                break
            kept = further
        ids = pa.array(self.table.ids(kept), pa.binary()).cast(pa.string())
        # What stays is in none of our files: its name is known, no more.
        away = np.flatnonzero(self.went[kept])
        if len(away):
            there, place = np.unique(kept[away], return_inverse=True)
            names = pa.array(self.pages.strings("duplicate_of", there)).take(pa.array(place))
            mask = np.zeros(len(kept), dtype=bool)
            mask[away] = True
            ids = pc.replace_with_mask(ids, mask, names)
        return Gone(pages, kept, step, value, self.crawls.of(kept), ids)


class PageTable:
    """Lengths and record ids of all pages, in files, and the order of who stays."""

    def __init__(self, folder: Path, crawls: Crawls):
        self.folder, self.crawls = folder, crawls

    @contextmanager
    def writing(self) -> Iterator[Callable[[Batch], None]]:
        """Gives a function that takes the batches, in order."""
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
        """Place of each page in the order of who stays: oldest crawl, longest, smallest record id: (N,) int64."""
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


def _heads(members: np.ndarray, starts: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups of members, each with the lowest in rank first; and for each member the first of its group."""
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
