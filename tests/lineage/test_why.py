"""`stemma why URL`: every row of every crawl's ledger, and a clear word where there is none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from corpus.ledger import LEDGER_SCHEMA, write_parquet
from lineage.why import print_rows, why
from resources.workspace import Workspace, WorkspaceError

URL = "https://example.org/page"


def row(crawl: str, record: str, url: str = URL, outcome: str = "kept", **more) -> dict:
    base = dict.fromkeys(LEDGER_SCHEMA.names)
    base |= {"record_id": record, "url": url, "host": "example.org", "crawl": crawl, "outcome": outcome}
    base |= {"warc_file": "00000.warc.gz", "warc_offset": 1203, "warc_length": 97, "config_hash": "c0"}
    return base | more


@pytest.fixture
def corpora(chain):
    """Two crawls with the same page: kept in one; too short, and then a copy, in the other."""
    Workspace(chain).set_crawl("second", {"source": "sample"})
    short = {"stage": "quality", "rule": "gopher_words", "value": 12.0, "threshold": 50.0}
    copy = {"stage": "dedup", "rule": "exact", "duplicate_of": "urn:1", "detail": "same text"}
    rows = {
        "sample": [row("sample", "urn:1"), row("sample", "urn:9", "https://example.org/else")],
        "second": [
            row("second", "urn:2", outcome="dropped", **short),
            row("second", "urn:3", outcome="dropped", **copy),
        ],
    }
    for crawl, found in rows.items():
        folder = chain / "data/cleaned_corpus" / crawl / "ledger"
        folder.mkdir(parents=True)
        write_parquet(found, LEDGER_SCHEMA, folder / "00000.parquet")
    return chain


def printed(url: str, rows: list[dict]) -> str:
    text = io.StringIO()
    print_rows(url, rows, Console(file=text, width=60, color_system=None))
    return text.getvalue()


def test_why_tells_every_crawls_rows_with_rule_value_and_place(corpora):
    rows = why(corpora, URL)
    assert [(r["crawl"], r["record_id"], r["outcome"]) for r in rows] == [
        ("sample", "urn:1", "kept"),
        ("second", "urn:2", "dropped"),
        ("second", "urn:3", "dropped"),
    ]
    text = printed(URL, rows)
    assert "quality: gopher_words, measured 12 against a limit of 50" in text
    assert "the same as urn:1, which was kept" in text
    assert "crawl second, 00000.warc.gz, bytes 1,203 to 1,300" in text


def test_a_bare_host_asks_for_all_its_pages(corpora):
    assert len(why(corpora, "example.org")) == 4


def test_a_page_that_no_crawl_held_is_said_so(corpora):
    assert why(corpora, "https://example.org/never") == []
    assert "in none of the crawls here" in printed("https://example.org/never", [])


def test_without_a_cleaned_crawl_there_is_nothing_to_ask(chain):
    with pytest.raises(WorkspaceError, match="No crawl is cleaned yet"):
        why(chain, URL)
