"""Deduplication against a comparison of every pair, in any order."""

import random

import numpy as np
import pytest

from corpus import dedup
from corpus.config import CleanConfig
from corpus.words import Words

CONFIG = CleanConfig()
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrst"]


def text_of(rng, words=200):
    return " ".join(rng.choice(VOCABULARY) for _ in range(words))


def edited(rng, text, share):
    return " ".join(rng.choice(VOCABULARY) if rng.random() < share else word for word in text.split())


def run(pages, config=CONFIG):
    """{record id: (record id that stays, rule)} of (record id, url, text) triples."""
    words = [(record, url, Words.of(text)) for record, url, text in pages]
    shingles = [w.shingles(config.shingle_words) for _, _, w in words]
    found = dedup.find_duplicates(
        dedup.sign(words, config), lambda wanted: (shingles[i] for i in wanted), config
    )
    return {pages[d.page][0]: (pages[d.kept][0], d.rule) for d in found}


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
    assert all(clusters[gone] == clusters[kept] for gone, (kept, _) in found.items())


def test_the_answer_does_not_depend_on_the_order_of_pages(crawl):
    shuffled = random.Random(1).sample(crawl, len(crawl))
    assert run(shuffled) == run(crawl)


def test_the_longest_text_stays_then_the_smallest_record_id():
    rng = random.Random(2)
    text = text_of(rng)
    found = run(
        [("b", "http://x/1", text), ("a", "http://x/2", text), ("c", "http://x/3", text + " and more")]
    )
    assert {kept for kept, _ in found.values()} == {"c"} and set(found) == {"a", "b"}
    assert run([("b", "http://x/1", text), ("a", "http://x/2", text.upper())]) == {
        "b": ("a", "duplicate_text")
    }


def test_same_address_is_one_page_whatever_it_says():
    rng = random.Random(3)
    pages = [("a", "http://x.org/p", text_of(rng)), ("b", "https://x.org/p#top", text_of(rng, 300))]
    assert run(pages) == {"a": ("b", "duplicate_url")}
    assert run(pages, CleanConfig(dedup_urls=False)) == {}


def test_a_pair_that_lsh_proposes_but_is_not_similar_is_refused():
    a, b = np.arange(100, dtype=np.uint64), np.arange(30, 130, dtype=np.uint64)
    assert dedup.verified_pairs([np.array([0, 1])], {0: a, 1: b}, 0.8) == {}
    assert dedup.verified_pairs([np.array([0, 1])], {0: a, 1: a[:90]}, 0.8) == {(0, 1): 0.9}


def test_a_page_copied_many_times_costs_one_comparison_a_copy(monkeypatch):
    shingles = {page: np.arange(50, dtype=np.uint64) for page in range(2000)}
    calls = []
    monkeypatch.setattr(dedup, "jaccard", lambda a, b: calls.append(1) or 1.0)
    dedup.verified_pairs([np.arange(2000)], shingles, 0.8)
    assert len(calls) == 1999


def test_chains_of_duplicates_name_a_page_that_stays(crawl):
    found = run(crawl)
    assert not {kept for kept, _ in found.values()} & set(found)


def test_the_default_bands_find_pairs_at_the_threshold():
    """1 - (1 - J^rows)^bands at J = 0.8, as the config's docstring says."""
    recall = 1 - (1 - 0.8**CONFIG.minhash_rows) ** CONFIG.minhash_bands
    assert 0.985 < recall < 0.99


def test_no_pages_no_duplicates():
    assert run([]) == {}
