"""One page of each: same address, same text, nearly the same text.

MinHash-LSH (Broder 1997; bands as in Leskovec et al., "Mining of Massive Datasets", ch. 3) only proposes pairs.
Every proposed pair is verified by the true Jaccard similarity of the two pages' shingles before it counts, since
half of what LSH proposes is false. Of a cluster the longest text stays, then the smallest record id, so that the
answer does not depend on the order in which pages came.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from corpus.config import CleanConfig
from corpus.urls import canonical_url
from corpus.words import Words

ALL_PAIRS = (
    64  # members of a bucket up to which every pair is verified; beyond, each against the bucket's leaders
)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A page that goes, and the page that stays in its place (indices into the crawl's candidates)."""

    page: int
    kept: int
    rule: str  # duplicate_url, duplicate_text, near_duplicate
    value: float  # Jaccard similarity to the page that proposed it; 1 for the exact rules
    threshold: float


@dataclass(slots=True)
class Signatures:
    """What deduplication needs to know of N pages. `bands` is (N, minhash_bands) uint64."""

    record_ids: list[str]
    lengths: np.ndarray  # (N,) int64, characters
    urls: np.ndarray  # (N,) uint64
    texts: np.ndarray  # (N,) uint64
    bands: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence["Signatures"]) -> "Signatures":
        """The pages of several units as one sequence, in the order given."""
        return cls(
            [record_id for part in parts for record_id in part.record_ids],
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("lengths", "urls", "texts", "bands")
            ),
        )


def sign(pages: Sequence[tuple[str, str, Words]], config: CleanConfig) -> Signatures:
    """Signatures of (record_id, url, words) triples."""
    shingles = [words.shingles(config.shingle_words) for _, _, words in pages]
    return Signatures(
        [record_id for record_id, _, _ in pages],
        np.array([len(words.text) for _, _, words in pages], dtype=np.int64),
        np.array([_hash(canonical_url(url)) for _, url, _ in pages], dtype=np.uint64),
        np.array([_text_hash(words.text) for _, _, words in pages], dtype=np.uint64),
        minhash_bands(shingles, config),
    )


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _text_hash(text: str) -> int:
    """First 8 bytes of the SHA-256 of the text without case and spacing."""
    normal = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:8], "big")


def minhash_bands(shingles: Sequence[np.ndarray], config: CleanConfig) -> np.ndarray:
    """One 64-bit hash a band of each page's MinHash signature: (N, minhash_bands) uint64."""
    from rensa import RMinHash

    n_hashes = config.minhash_bands * config.minhash_rows
    if not shingles:
        return np.zeros((0, config.minhash_bands), dtype=np.uint64)
    offsets = np.concatenate(([0], np.cumsum([len(s) for s in shingles]))).astype(np.uint64)
    flat = np.concatenate(shingles) if offsets[-1] else np.zeros(0, dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, n_hashes, config.minhash_seed)
    rows = np.array(matrix.to_rows(), dtype=np.uint32)
    rows = rows.reshape(len(shingles), config.minhash_bands, config.minhash_rows)
    out = np.empty((len(shingles), config.minhash_bands), dtype=np.uint64)
    for page in range(len(shingles)):
        for band in range(config.minhash_bands):
            out[page, band] = xxhash.xxh3_64_intdigest(rows[page, band].tobytes(), seed=band)
    return out


def find_duplicates(
    pages: Signatures, shingles_of: Callable[[Sequence[int]], Iterator[np.ndarray]], config: CleanConfig
) -> list[Duplicate]:
    """All pages that go, by page. `shingles_of` gives the shingles of pages, in the order asked for.

    First same URL, then same text, then near-duplicates, each among the pages that the one before left.
    """
    rank = _rank(pages)
    into = np.arange(len(pages.record_ids))  # the page that stands for each page
    found: list[Duplicate] = []
    for wanted, keys, rule in (
        (config.dedup_urls, pages.urls, "duplicate_url"),
        (config.dedup_texts, pages.texts, "duplicate_text"),
    ):
        if wanted:
            found += _same_key(keys, into, rank, rule)
    if config.dedup_near:
        found += _near(pages, into, rank, shingles_of, config)
    return sorted((_rooted(d, into) for d in found), key=lambda d: d.page)


def _rank(pages: Signatures) -> np.ndarray:
    """Place of each page in the order of who stays: longest text, then smallest record id: (N,) int64."""
    order = sorted(
        range(len(pages.record_ids)), key=lambda i: (-int(pages.lengths[i]), pages.record_ids[i], i)
    )
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _rooted(duplicate: Duplicate, into: np.ndarray) -> Duplicate:
    kept = duplicate.kept
    while into[kept] != kept:
        kept = int(into[kept])
    return Duplicate(duplicate.page, kept, duplicate.rule, duplicate.value, duplicate.threshold)


def _groups(keys: np.ndarray, members: np.ndarray) -> Iterator[np.ndarray]:
    """Members that share a key, as arrays of at least two, in the order of keys."""
    order = np.argsort(keys[members], kind="stable")
    ordered = members[order]
    cuts = np.flatnonzero(np.diff(keys[ordered])) + 1
    for group in np.split(ordered, cuts):
        if len(group) > 1:
            yield group


def _same_key(keys: np.ndarray, into: np.ndarray, rank: np.ndarray, rule: str) -> list[Duplicate]:
    found = []
    left = np.flatnonzero(into == np.arange(len(into)))
    for group in _groups(keys, left):
        kept = int(group[np.argmin(rank[group])])
        for page in group.tolist():
            if page != kept:
                into[page] = kept
                found.append(Duplicate(page, kept, rule, 1.0, 1.0))
    return found


def _near(
    pages: Signatures,
    into: np.ndarray,
    rank: np.ndarray,
    shingles_of: Callable[[Sequence[int]], Iterator[np.ndarray]],
    config: CleanConfig,
) -> list[Duplicate]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left = np.flatnonzero(into == np.arange(len(into)))
    buckets = [group[np.argsort(rank[group])] for band in pages.bands.T for group in _groups(band, left)]
    members = sorted({int(page) for bucket in buckets for page in bucket})
    shingles = dict(zip(members, shingles_of(members), strict=True))
    pairs = verified_pairs(buckets, shingles, config.jaccard)
    if not pairs:
        return []
    a, b = np.array(list(pairs)).T
    size = len(into)
    _, label = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(size, size)), directed=False)
    nearest: dict[int, float] = {}
    for (one, other), similarity in pairs.items():
        nearest[one] = max(nearest.get(one, 0.0), similarity)
        nearest[other] = max(nearest.get(other, 0.0), similarity)
    found = []
    for group in _groups(label, np.array(sorted(nearest))):
        kept = int(group[np.argmin(rank[group])])
        for page in group.tolist():
            if page != kept:
                into[page] = kept
                found.append(Duplicate(page, kept, "near_duplicate", round(nearest[page], 6), config.jaccard))
    return found


def verified_pairs(
    buckets: Sequence[np.ndarray], shingles: dict[int, np.ndarray], least: float
) -> dict[tuple[int, int], float]:
    """The pairs of pages of a common bucket whose Jaccard similarity is at least `least`, with it.

    Each pair is computed once. In buckets beyond ALL_PAIRS members a page is compared with those members only
    that had no similar one before them, so that a page copied a million times costs a million comparisons.
    """
    known: dict[tuple[int, int], float] = {}

    def similarity(one: int, other: int) -> float:
        key = (min(one, other), max(one, other))
        if key not in known:
            known[key] = jaccard(shingles[one], shingles[other])
        return known[key]

    for bucket in buckets:
        leaders: list[int] = []
        for page in bucket.tolist():
            similar = [other for other in leaders if similarity(page, other) >= least]
            if len(bucket) <= ALL_PAIRS or not similar:
                leaders.append(page)
    return {pair: value for pair, value in sorted(known.items()) if value >= least}


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sorted arrays of distinct hashes."""
    if not len(a) or not len(b):
        return 0.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
