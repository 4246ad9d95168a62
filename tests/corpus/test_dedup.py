"""Deduplication against a comparison of every pair, in any order."""

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest

from corpus.config import CleanConfig
from corpus.dedup import duplicates, signatures, similar, spill
from corpus.dedup.signatures import SignatureFiles, sign, write_signatures
from corpus.dedup.similar import pack, similarities, unpack
from corpus.dedup.spill import Partitions
from corpus.words import Words

CONFIG = CleanConfig()
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrst"]


def text_of(rng, words=200):
    return " ".join(rng.choice(VOCABULARY) for _ in range(words))


def edited(rng, text, share):
    return " ".join(rng.choice(VOCABULARY) if rng.random() < share else word for word in text.split())


def run(pages, config=CONFIG):
    """{record id: (record id of the kept page, rule)} of (record_id, url, text) triples."""
    signed = sign([(record, url, Words.of(text)) for record, url, text in pages], config)
    with tempfile.TemporaryDirectory() as folder:
        write_signatures(signed, Path(folder) / "a.parquet")
        files = SignatureFiles([Path(folder) / "a.parquet"], config)
        found = duplicates.find_duplicates(files, config, Path(folder) / "scratch")
        assert not (Path(folder) / "scratch").exists()
    assert [pages[k][0] for k in found.kept.tolist()] == found.kept_ids.to_pylist()
    rules = [duplicates.RULES[step] for step in found.step.tolist()]
    dropped = [pages[page][0] for page in found.pages.tolist()]
    return dict(zip(dropped, zip(found.kept_ids.to_pylist(), rules, strict=True), strict=True))


@pytest.fixture(scope="module")
def crawl():
    """300 pages: originals with 0 to 3 edited copies, of which some are near enough to be duplicates."""
    rng, pages = random.Random(5), []
    for number in range(120):
        original = text_of(rng)
        texts = [original] + [
            edited(rng, original, rng.choice([0.0, 0.01, 0.02, 0.05, 0.2])) for _ in range(number % 4)
        ]
        pages += [
            (f"r{len(pages) + i:04d}", f"http://h{number}.org/{i}", text) for i, text in enumerate(texts)
        ]
    return pages


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs(crawl):
    shingles = {record: set(Words.of(text).shingles(5).tolist()) for record, _, text in crawl}
    similar = {
        frozenset((a, b)) for a in shingles for b in shingles
        if a < b and len(shingles[a] & shingles[b]) / len(shingles[a] | shingles[b]) >= CONFIG.jaccard
    }  # fmt: skip
    found = run(crawl)
    clusters = {record: record for record in shingles}
    for pair in similar:
        a, b = pair
        old, new = clusters[a], clusters[b]
        clusters = {record: new if root == old else root for record, root in clusters.items()}
    too_many = len(shingles) - len(set(clusters.values()))
    assert too_many > 30 and len(found) == too_many
    assert all(clusters[page] == clusters[kept] for page, (kept, _) in found.items())


def test_the_answer_does_not_depend_on_the_order_of_pages(crawl):
    shuffled = random.Random(1).sample(crawl, len(crawl))
    assert run(shuffled) == run(crawl)


def test_the_longest_text_is_kept_then_the_smallest_record_id():
    rng = random.Random(2)
    text = text_of(rng)
    found = run(
        [("b", "http://x/1", text), ("a", "http://x/2", text), ("c", "http://x/3", text + " and more")]
    )
    assert {kept for kept, _ in found.values()} == {"c"} and set(found) == {"a", "b"}
    assert run([("b", "http://x/1", text), ("a", "http://x/2", text.upper())]) == {
        "b": ("a", "duplicate_text")
    }


def test_pages_of_one_url_are_duplicates_whatever_their_texts():
    rng = random.Random(3)
    pages = [("a", "http://x.org/p", text_of(rng)), ("b", "https://x.org/p#top", text_of(rng, 300))]
    assert run(pages) == {"a": ("b", "duplicate_url")}
    assert run(pages, CleanConfig(dedup_urls=False)) == {}


class Sets:
    """Pages as sets of shingles; counts how often they are asked for."""

    def __init__(self, sets):
        self.sets = [np.sort(np.array(sorted(s), dtype=np.int32)) for s in sets]

    def shingles(self, pages):
        for piece in np.array_split(pages, 3):  # in pieces, as row groups come
            if len(piece):
                parts = [self.sets[page] for page in piece.tolist()]
                yield piece, np.array([len(p) for p in parts], dtype=np.int64), np.concatenate(parts)

    def lengths(self, pages):
        return np.array([2 * len(self.sets[page]) for page in pages.tolist()], dtype=np.int64)


def test_a_pair_that_lsh_proposes_but_is_not_similar_is_refused(tmp_path):
    sets = Sets([range(100), range(30, 130), range(90)])
    pairs = pack(np.array([0, 2, 1]), np.array([1, 0, 2]))
    kept, value = similarities(pairs, sets, sets.lengths, 0.8, tmp_path / "x", 1 << 20)
    assert [pair.tolist() for pair in unpack(kept)] == [[0], [2]] and value.tolist() == [0.9]


@pytest.mark.parametrize("memory", [1, 3000, 20_000, 1 << 30])
def test_similarities_are_those_of_sets_whatever_the_memory(tmp_path, memory):
    rng = random.Random(4)
    base = [rng.sample(range(1 << 31), 60) for _ in range(6)]
    drawn = [
        set(rng.sample(base[n % 6], rng.randint(1, 60)) + rng.sample(range(1 << 31), 9)) for n in range(60)
    ]
    sets, pairs = Sets(drawn), [(a, b) for a in range(60) for b in range(a + 1, 60) if rng.random() < 0.3]
    one, other = np.array(pairs).T
    kept, value = similarities(pack(one, other), sets, sets.lengths, 0.3, tmp_path / "x", memory)
    truth = {(a, b): len(drawn[a] & drawn[b]) / len(drawn[a] | drawn[b]) for a, b in pairs}
    found = dict(
        zip(zip(*(side.tolist() for side in unpack(kept)), strict=True), value.tolist(), strict=True)
    )
    assert found == {pair: v for pair, v in truth.items() if v >= 0.3} and len(found) > 20


def test_groups_are_the_same_whatever_the_memory(tmp_path):
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 1 << 64, 20_000, dtype=np.uint64)[rng.integers(0, 20_000, 60_000)]
    answers = []
    for memory in (1 << 14, 1 << 18, 1 << 30):
        parts = Partitions(tmp_path / "p", len(keys), memory)
        for low in range(0, len(keys), 7001):
            parts.add(keys[low : low + 7001], np.arange(low, min(low + 7001, len(keys))))
        found = [np.split(pages, starts[1:]) for pages, starts in parts.groups()]
        answers.append([group.tolist() for groups in found for group in groups])
        assert not (tmp_path / "p").exists()
    by_key = {}
    for page, key in enumerate(keys.tolist()):
        by_key.setdefault(key, []).append(page)
    assert answers[0] == [pages for _, pages in sorted(by_key.items()) if len(pages) > 1]
    assert answers[1] == answers[0] == answers[2]


def test_the_answer_does_not_depend_on_the_memory(crawl, monkeypatch):
    monkeypatch.setattr(spill, "MAX_PARTITIONS", 64)
    whole = run(crawl)
    starved = CleanConfig()
    object.__setattr__(starved, "dedup_memory_mb", 0)  # 64 files a step, and a pair a chunk
    assert run(crawl, starved) == whole and len(whole) > 30


def test_a_chain_of_near_duplicates_is_one_cluster_and_false_candidates_are_none():
    """A~B and B~C but not A~C: one cluster. An unrelated page in all of their buckets is kept."""
    rng = random.Random(8)
    words = text_of(rng, 400).split()
    a, b, c = (" ".join(words[start : start + 340]) for start in (0, 30, 60))
    jaccards = [true_jaccard(x, y) for x, y in ((a, b), (b, c), (a, c))]
    assert jaccards[0] > 0.8 and jaccards[1] > 0.8 > jaccards[2]
    easy = CleanConfig(minhash_rows=1, minhash_bands=100)  # proposes nearly everything
    unrelated = " ".join(words[:100]) + " " + text_of(rng, 250)
    pages = [("r1", "u:1", a), ("r2", "u:2", b), ("r3", "u:3", c), ("r4", "u:4", unrelated)]
    found = run(pages, easy)
    assert set(found) == {"r1", "r2", "r3"} - {kept_id := next(iter(found.values()))[0]}
    assert {kept for kept, _ in found.values()} == {kept_id}


def true_jaccard(one, other):
    a, b = (set(Words.of(text).shingles(5).tolist()) for text in (one, other))
    return len(a & b) / len(a | b)


def test_a_page_copied_many_times_costs_one_comparison_a_copy(monkeypatch):
    monkeypatch.setattr(signatures, "minhash_bands", lambda s, c: np.ones((len(s), 1), dtype=np.uint64))
    rng, calls = random.Random(9), []
    text, compare = text_of(rng, 300), duplicates.similarities
    monkeypatch.setattr(
        duplicates, "similarities", lambda p, *rest: calls.append(len(p)) or compare(p, *rest)
    )
    pages = [(f"r{n:04d}", f"u:{n}", f"{text} number {n}") for n in range(500)]
    found = run(pages, CleanConfig(minhash_bands=1))
    assert len(found) == 499 and {kept for kept, _ in found.values()} == {"r0100"}
    assert sum(calls) == 499


def test_clusters_in_one_large_bucket_are_separated(monkeypatch):
    """Every page shares a band with every other; only those of a family are similar."""
    monkeypatch.setattr(signatures, "minhash_bands", lambda s, c: np.ones((len(s), 1), dtype=np.uint64))
    rng = random.Random(10)
    families = [text_of(rng, 200) for _ in range(30)]
    pages = [(f"r{n:04d}", f"u:{n}", f"{families[n % 30]} {n}") for n in range(150)]
    found = run(pages, CleanConfig(minhash_bands=1))
    assert len(found) == 120
    assert all(int(page[1:]) % 30 == int(kept[1:]) % 30 for page, (kept, _) in found.items())


def test_chains_of_duplicates_name_a_kept_page(crawl):
    found = run(crawl)
    assert not {kept for kept, _ in found.values()} & set(found)


def test_the_default_bands_find_pairs_at_the_threshold():
    """1 - (1 - J^rows)^bands at J = 0.8, as the config's docstring says."""
    recall = 1 - (1 - 0.8**CONFIG.minhash_rows) ** CONFIG.minhash_bands
    assert 0.985 < recall < 0.99


def test_no_pages_no_duplicates():
    assert run([]) == {}


@pytest.mark.parametrize("n_pairs", [0, 1, 40, 100, 200])
def test_clusters_are_scipys_connected_components(n_pairs):
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    draw = np.random.default_rng(n_pairs)
    a, b = draw.integers(0, 150, (2, n_pairs)) * 1_000
    nodes, label = similar.components(a, b)
    place_a, place_b = np.searchsorted(nodes, a), np.searchsorted(nodes, b)
    ones = np.ones(n_pairs, dtype=np.int8)
    theirs = connected_components(
        coo_array((ones, (place_a, place_b)), shape=(len(nodes),) * 2), directed=False
    )
    assert nodes.tolist() == sorted({*a.tolist(), *b.tolist()})
    assert (label[:, None] == label).tolist() == (theirs[1][:, None] == theirs[1]).tolist()


def test_a_long_chain_is_one_cluster():
    order = np.random.default_rng(0).permutation(20_000)
    nodes, label = similar.components(order[:-1], order[1:])
    assert len(nodes) == 20_000 and not label.any()
