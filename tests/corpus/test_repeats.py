"""Lines and runs of words that a crawl repeats: those that a count over all documents finds."""

import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_across import CONFIG, prose, write

from corpus.classifier import BUCKETS, Classifier, features
from corpus.clean import CleanConfig, clean_crawl
from corpus.dedup.repeats import find_repeats, remove_repeats
from corpus.ledger import check_conservation, document_dataset, read_ledger


def cut(tmp_path, units, **settings):
    """What is left of texts, unit by unit."""
    config, folders = CleanConfig(**settings), []
    for number, texts in enumerate(units):
        folders.append(tmp_path / f"unit{number}")
        folders[-1].mkdir(parents=True)
        table = pa.table({"text": texts, "n_bytes": [len(text.encode()) for text in texts]})
        pq.write_table(table, folders[-1] / "documents.parquet")
    find_repeats(folders, [set()] * len(units), config, tmp_path / "found")
    return [remove_repeats(texts, tmp_path / "found", n, config) for n, texts in enumerate(units)]


def test_lines_of_many_documents_are_removed_from_all_of_them(tmp_path):
    rng = random.Random(1)
    own = [" ".join(prose(rng, 12)) for _ in range(9)]
    footer = "© {} All rights reserved"
    texts = [f"{line}\n\n{footer.format(2000 + n)}\n{line}" for n, line in enumerate(own)]
    twice = "said here\nsaid here\nsaid here"  # three times, but in one document
    left = cut(tmp_path, [texts[:4], [*texts[4:], twice]], dedup_lines=2)
    assert [c.text for unit in left for c in unit] == [f"{line}\n\n{line}" for line in own] + [twice]
    assert left[0][0].in_lines == len(footer.format(2000)) + 1 and left[0][0].in_substrings == 0
    kept = cut(tmp_path / "more", [texts], dedup_lines=9)
    assert [c.text for c in kept[0]] == texts


def test_runs_of_enough_tokens_are_kept_at_their_first_occurrence(tmp_path):
    rng = random.Random(2)
    shared, a, b, c = (" ".join(prose(rng, n)) for n in (30, 15, 15, 15))
    short = " ".join(shared.split()[:19])
    units = [[f"{a} {shared}.", f"{b}\n{shared}\n{c}"], [shared, f"{c} {short} {a}"]]
    left = cut(tmp_path, units, dedup_substrings=20)
    assert [cut.text for cut in left[0]] == [units[0][0], f"{b}\n{c}"]
    assert [cut.text for cut in left[1]] == ["", units[1][1]]
    assert left[1][0].in_substrings == len(shared)


def test_runs_are_those_of_a_search_for_every_one_of_them_whatever_the_memory(tmp_path):
    rng = random.Random(3)
    pieces = [prose(rng, rng.randint(4, 30)) for _ in range(12)]
    documents = [[w for _ in range(5) for w in rng.choice(pieces) + prose(rng, 3)] for _ in range(20)]
    seen, expected = set(), []
    for words in documents:
        repeated = set()
        for first in range(len(words) - 9):
            run = tuple(words[first : first + 10])
            repeated |= set(range(first, first + 10)) if run in seen else set()
            seen.add(run)
        expected.append(" ".join(word for place, word in enumerate(words) if place not in repeated))
    texts = [" ".join(words) for words in documents]
    left = cut(tmp_path, [texts[:7], texts[7:]], dedup_substrings=10)
    assert [cut.text.strip() for unit in left for cut in unit] == expected != texts
    starved = CleanConfig(dedup_substrings=10)
    object.__setattr__(starved, "dedup_memory_mb", 0)
    find_repeats([tmp_path / "unit0", tmp_path / "unit1"], [set(), set()], starved, tmp_path / "again")
    assert remove_repeats(texts[:7], tmp_path / "again", 0, starved) == left[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_ledger_has_the_removed_share_and_too_short_rests_are_dropped(tmp_path, workers):
    rng = random.Random(4)
    shared = prose(rng, 100)
    pages = [("urn:a", "http://a.example/", shared + prose(rng, 80))]
    pages += [("urn:b", "http://b.example/", prose(rng, 90) + shared), ("urn:c", "http://c.example/", shared)]
    files = write(tmp_path / "a.warc.gz", pages) + write(
        tmp_path / "b.warc.gz", [("urn:d", "http://d.example/", prose(rng))]
    )
    config = replace(CONFIG, dedup_substrings=50)
    clean_crawl(files, tmp_path / "out", tmp_path / "work", config, workers=workers)
    check_conservation(tmp_path / "out")
    rows = {row["record_id"]: row for row in read_ledger(tmp_path / "out").to_pylist()}
    assert rows["urn:a"]["rule"] is None and rows["urn:d"]["rule"] is None
    assert rows["urn:b"]["outcome"] == "kept" and rows["urn:b"]["rule"] == "repeats_removed"
    assert 0.4 < rows["urn:b"]["value"] < 0.6 and "0 characters in repeated lines" in rows["urn:b"]["detail"]
    assert rows["urn:c"]["outcome"] == "dropped" and rows["urn:c"]["rule"] == "too_little_left"
    left = document_dataset(tmp_path / "out").to_table().to_pylist()
    assert {row["record_id"] for row in left} == {"urn:a", "urn:b", "urn:d"}
    assert all(row["n_bytes"] == len(row["text"].encode()) for row in left)


ENGLISH = (
    "the old mill stands at bend of river and road from village meets it there while farmers bring grain every autumn "
    "because water turns great wheel until evening when children walk home along quiet fields with lamps"
)


def test_a_document_keeps_its_own_text_where_the_classifier_drops_one_before_it(tmp_path):
    rng, english = random.Random(5), ENGLISH.split()
    shared = [rng.choice(english) for _ in range(100)]
    worst, *better = ([rng.choice(english) for _ in range(90)] for _ in range(4))
    texts = [worst, *(words + shared for words in better)]
    pages = [(f"urn:{n}", f"http://a.example/{n}", words) for n, words in enumerate(texts)]
    weights = np.zeros(BUCKETS, dtype=np.float32)
    weights[features(" ".join(shared))] = 0.01
    Classifier(weights, 0.0, ("en",)).save(tmp_path / "model.safetensors")
    config = replace(
        CONFIG,
        languages=("en",),
        dedup_substrings=50,
        quality_model=str(tmp_path / "model.safetensors"),
        quality_keep=0.75,
    )
    files = write(tmp_path / "a.warc.gz", pages)
    clean_crawl(files, tmp_path / "out", tmp_path / "work", config, workers=0)
    rows = {row["record_id"]: row for row in read_ledger(tmp_path / "out").to_pylist()}
    assert rows["urn:0"]["rule"] == "quality_classifier" and rows["urn:2"]["rule"] == "repeats_removed"
    left = {
        row["record_id"]: row["text"] for row in document_dataset(tmp_path / "out").to_table().to_pylist()
    }
    assert set(left) == {"urn:1", "urn:2", "urn:3"}
    for number, words in enumerate(better, 1):
        assert left[f"urn:{number}"].lower().replace(".", "").split()[:60] == words[:60]
