"""Crawls against each other: what a joint run would find is found from the signatures of the old ones."""

import json
import random
from pathlib import Path

import pytest
from small_web import content

from corpus.clean import CleanConfig, clean_crawl
from corpus.dedup.across import find_across
from corpus.ledger import LEDGER_SCHEMA, check_conservation, document_dataset, ledger_dataset, read_ledger
from corpus.rules.quality import RULES
from corpus.warc_writer import WarcWriter
from model.data.documents import left_out

CONFIG = CleanConfig(languages=(), language_score=0.0, thresholds=dict.fromkeys(r.name for r in RULES))
WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrst"]


def prose(rng, words=160):
    return [rng.choice(WORDS) for _ in range(words)]


def page(words):
    sentences = [" ".join(words[start : start + 10]).capitalize() + "." for start in range(0, len(words), 10)]
    body = "".join(
        f"<p>{' '.join(sentences[start : start + 4])}</p>" for start in range(0, len(sentences), 4)
    )
    return f"<html><body><main>{body}</main></body></html>".encode()


def changed(rng, words, n):
    words = list(words)
    for place in rng.sample(range(len(words)), n):
        words[place] = rng.choice(WORDS)
    return words


def write(path: Path, pages) -> list[tuple[str, Path]]:
    """A WARC of (record id, url, words)."""
    with WarcWriter(path) as writer:
        for record_id, url, words in pages:
            block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page(words)
            writer.write("response", record_id, "2026-01-01T00:00:00Z", block, url=url)
    return [(path.name, path)]


@pytest.fixture(scope="module")
def crawls(tmp_path_factory):
    """Three crawls over the same 40 pages: some as they were, some edited, some moved, some new."""
    folder, rng = tmp_path_factory.mktemp("crawls"), random.Random(6)
    texts = [prose(rng) for _ in range(40)]
    files = []
    for number in range(3):
        pages = []
        for index, text in enumerate(texts):
            fate = rng.choice(["absent", "same", "moved", "edited", "rewritten"])
            words = {"edited": changed(rng, text, 2), "rewritten": changed(rng, text, 80)}.get(fate, text)
            url = f"http://a.example/{index}" + ("" if fate in ("same", "rewritten") else f"/{number}")
            if fate != "absent":
                pages.append((f"urn:c{number}:{index:03d}", url, words))
            if index % 5 == 0:  # and a near copy within the crawl
                pages.append(
                    (
                        f"urn:c{number}:{index:03d}b",
                        f"http://b.example/{number}/{index}",
                        changed(rng, words, 2),
                    )
                )
        files.append(write(folder / f"c{number}.warc.gz", pages))
    return files


def clean(files, folder, crawl, **options):
    clean_crawl(files, folder / crawl, folder / "work", CONFIG, crawl, workers=0, **options)
    return folder / crawl


@pytest.fixture(scope="module")
def alone(crawls, tmp_path_factory):
    """Each crawl cleaned by itself."""
    folder = tmp_path_factory.mktemp("alone")
    return [(f"c{number}", clean(files, folder, f"c{number}")) for number, files in enumerate(crawls)]


def documents(folder) -> set[str]:
    return set(document_dataset(folder).to_table(columns=["record_id"])["record_id"].to_pylist())


def test_a_crawl_against_an_older_one_loses_what_a_run_over_both_would_take_from_it(crawls, alone, tmp_path):
    old = alone[0][1]
    new = clean(crawls[1], tmp_path, "c1", against=[old])
    both = clean(crawls[0] + crawls[1], tmp_path, "both")
    # In one run the longer page is kept, against an older crawl the older: the number of pages is the same.
    assert len(documents(old)) + len(documents(new)) == len(documents(both))
    rows = [row for row in read_ledger(new).to_pylist() if row["stage"] == "dedup"]
    older = [row for row in rows if row["detail"] == "of crawl c0"]
    assert {row["rule"] for row in older} == {"duplicate_url", "duplicate_text", "near_duplicate"}
    assert {row["duplicate_of"] for row in older} <= documents(old)
    assert {row["duplicate_of"] for row in rows if row not in older} <= documents(new)
    assert check_conservation(new)["dropped"] >= len(rows) > len(older) > 10


def test_the_old_crawl_is_known_by_its_signatures_alone(crawls, alone, tmp_path):
    old = alone[0][1]
    whole = clean(crawls[1], tmp_path / "a", "c1", against=[old])
    (tmp_path / "c0").mkdir()
    (tmp_path / "c0" / "signatures").symlink_to(old / "signatures")
    assert content(clean(crawls[1], tmp_path / "b", "c1", against=[tmp_path / "c0"])) == content(whole)


def test_a_chain_of_crawls_each_against_all_before_is_what_the_overlay_says(crawls, alone, tmp_path):
    """Crawls cleaned alone and compared afterwards keep as many documents as crawls cleaned one after another."""
    stats = find_across(alone, tmp_path / "across", CONFIG)
    dropped = {record_id for _, record_id in left_out(tmp_path / "across")}
    chain = []
    for number, files in enumerate(crawls):
        chain.append(clean(files, tmp_path, f"c{number}", against=list(chain)))
    left = [documents(folder) - dropped for _, folder in alone]
    # A page whose address is an older one's is compared no further, so cleaned alone it may take others with it.
    assert sum(map(len, left)) <= sum(len(documents(folder)) for folder in chain)
    assert sum(len(documents(folder)) for folder in chain) - sum(map(len, left)) <= 3
    assert left[0] == documents(chain[0]) and stats["dropped"] == len(dropped) > 20


def test_the_overlay_is_a_ledger_of_dropped_documents_that_names_the_kept_ones(alone, tmp_path):
    stats = find_across(alone, tmp_path / "across", CONFIG)
    rows = ledger_dataset(tmp_path / "across").to_table().to_pylist()
    assert ledger_dataset(tmp_path / "across").schema == LEDGER_SCHEMA
    kept = {name: documents(folder) for name, folder in alone}
    dropped = {row["record_id"] for row in rows}
    for row in rows:
        assert (
            row["outcome"] == "dropped" and row["stage"] == "dedup" and row["record_id"] in kept[row["crawl"]]
        )
        of = row["detail"].removeprefix("of crawl ")
        assert of < row["crawl"] and row["duplicate_of"] in kept[of] - dropped
    assert stats == json.loads((tmp_path / "across" / "stats.json").read_text())
    assert stats["documents"] == sum(map(len, kept.values())) and stats["crawls"]["c0"]["dropped"] == 0
    assert sum(sum(crawl["rules"].values()) for crawl in stats["crawls"].values()) == len(rows)
    again = find_across(alone, tmp_path / "again", CleanConfig(dedup_memory_mb=1))
    assert again == stats and (tmp_path / "across" / "ledger").is_dir()


def test_the_order_of_crawls_decides_which_page_is_kept(alone, tmp_path):
    find_across(alone[::-1], tmp_path / "across", CONFIG)
    assert {row["crawl"] for row in ledger_dataset(tmp_path / "across").to_table().to_pylist()} == {
        "c0",
        "c1",
    }


def test_a_younger_page_never_decides_between_older_ones(tmp_path):
    """O ~ N ~ P, O and P not similar: N is dropped, both others are kept."""
    rng = random.Random(12)
    words = prose(rng, 460)
    texts = {"o": words[0:400], "n": words[30:430], "p": words[60:460]}
    folders = []
    for name in ("o", "p", "n"):
        files = write(tmp_path / f"{name}.warc.gz", [(f"urn:{name}", f"http://{name}.example/", texts[name])])
        folders.append((name, clean(files, tmp_path, name)))
    assert find_across(folders, tmp_path / "across", CONFIG)["dropped"] == 1
    assert left_out(tmp_path / "across") == {("n", "urn:n")}


def test_corpora_that_cannot_be_compared_are_refused(crawls, alone, tmp_path):
    with pytest.raises(FileNotFoundError, match="no signatures"):
        clean(crawls[1], tmp_path, "c1", against=[tmp_path])
    with pytest.raises(ValueError, match="shingle_words = 5, here it is 7"):
        find_across(alone, tmp_path / "across", CleanConfig(shingle_words=7))
    assert left_out(tmp_path / "nothing") == frozenset()


def test_a_kept_page_of_an_absent_crawl_is_still_named(crawls, alone, tmp_path):
    """c1 was cleaned against c0. c2 against c1 alone: what c1 lost to c0 still names c0's page."""
    younger = clean(crawls[1], tmp_path, "c1", against=[alone[0][1]])
    youngest = clean(crawls[2], tmp_path, "c2", against=[younger])
    rows = [row for row in read_ledger(youngest).to_pylist() if row["duplicate_of"]]
    of_c0 = {row["duplicate_of"] for row in rows if row["duplicate_of"].startswith("urn:c0")}
    assert of_c0 and of_c0 <= documents(alone[0][1])
    kept = documents(alone[0][1]) | documents(younger) | documents(youngest)
    assert {row["duplicate_of"] for row in rows} <= kept
