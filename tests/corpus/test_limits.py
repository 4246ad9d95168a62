"""Pages that hang, explode or crash the parser: each costs one failed row, and changes nothing else."""

from pathlib import Path

import pytest

from corpus.clean import CleanConfig, clean_crawl
from corpus.ledger import read_ledger
from corpus.warc_writer import WarcWriter

SENTENCE = "The old mill stands at the bend of the river, and the road from the village meets it there."
CONFIG = CleanConfig(languages=(), thresholds=dict.fromkeys([]), page_cpu_seconds=2, page_memory_mb=200)


def prose(number: int) -> bytes:
    return f"<h1>Page {number}</h1><p>{SENTENCE} Number {number} is written on its door.</p>".encode()


def write_pages(path: Path, pages: list[bytes]) -> list[tuple[str, Path]]:
    with WarcWriter(path) as writer:
        for number, page in enumerate(pages):
            block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page
            url = f"http://a.example/{number}"
            writer.write("response", f"urn:test:{number}", "2026-01-01T00:00:00Z", block, url=url)
    return [(path.name, path)]


def outcomes(folder: Path) -> dict[str, tuple[str, str | None]]:
    """What became of each record, its place in the file aside."""
    rows = read_ledger(folder).to_pylist()
    return {row["record_id"]: (row["outcome"], row["rule"], row["value"], row["detail"]) for row in rows}


BAD = {
    # Cost and memory of the parser on these were measured: docs/engines.md.
    "hangs: 100,000 nested tags are quadratic work": (b"<div>" * 100_000, "cpu_time"),
    "hangs: 300,000 attributes of one tag": (
        b"<div " + b" ".join(b"a%d=1" % n for n in range(300_000)) + b">",
        "cpu_time",
    ),
    "explodes: 2 million links, each a node": (b"<p>" + b"<a href=x>y " * 600_000, "memory"),
    "explodes: formatting that every paragraph takes up again": (b"<b>" * 2_000_000, "memory"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_page_is_one_failed_row_and_the_others_are_as_without_it(what, tmp_path):
    page, rule = BAD[what]
    good = [prose(number) for number in range(6)]
    clean_crawl(
        write_pages(tmp_path / "good.warc.gz", good), tmp_path / "a", tmp_path / "work", CONFIG, workers=1
    )
    bad = [*good, page + prose(7)]
    clean_crawl(
        write_pages(tmp_path / "bad.warc.gz", bad), tmp_path / "b", tmp_path / "work", CONFIG, workers=1
    )
    without, found = outcomes(tmp_path / "a"), outcomes(tmp_path / "b")
    assert found.pop("urn:test:6")[:2] == ("failed", rule)
    assert found == without
