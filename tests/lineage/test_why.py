"""`stemma why URL`: every row of every crawl's ledger, and a clear message where there is none."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from core.errors import WorkspaceError
from corpus.ledger import DOCUMENT_SCHEMA, LEDGER_SCHEMA, write_parquet
from lineage.printing import print_rows
from lineage.why import nearest, why
from resources.workspace import Workspace

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
    short = {"stage": "quality", "rule": "gopher_min_words", "value": 12.0, "threshold": 50.0}
    copy = {"stage": "dedup", "rule": "duplicate_text", "duplicate_of": "urn:1", "detail": "same text"}
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


def printed(url: str, rows: list[dict], near: list[str] | None = None) -> str:
    text = io.StringIO()
    print_rows(url, rows, Console(file=text, width=60, color_system=None), near)
    return text.getvalue()


def test_why_shows_every_crawls_rows_with_rule_value_and_place(corpora):
    rows = why(corpora, URL)
    assert [(r["crawl"], r["record_id"], r["outcome"]) for r in rows] == [
        ("sample", "urn:1", "kept"),
        ("second", "urn:2", "dropped"),
        ("second", "urn:3", "dropped"),
    ]
    text = printed(URL, rows)
    assert "quality: gopher_min_words, measured 12, below the limit of 50" in text
    assert "Words, signs not counted (Gopher, A.1.1)." in text
    assert f"kept in its place: {URL}" in text
    assert "crawl second, 00000.warc.gz, bytes 1,203 to 1,300" in text


def test_a_bare_host_finds_all_its_pages(corpora):
    assert len(why(corpora, "example.org")) == 4


def test_a_record_id_finds_its_page(corpora):
    assert [row["url"] for row in why(corpora, "urn:9")] == ["https://example.org/else"]


@pytest.mark.parametrize(
    "spelling", ["http://example.org/page/", "www.example.org/page", f"{URL}?utm_source=x"]
)
def test_another_spelling_of_the_same_address_finds_the_page(corpora, spelling):
    assert {row["record_id"] for row in why(corpora, spelling)} == {"urn:1", "urn:2", "urn:3"}


def test_a_page_in_no_crawl_is_reported_with_similar_urls(corpora):
    never = "https://example.org/els"
    assert why(corpora, never) == []
    text = printed(never, [], nearest(corpora, never))
    assert "in none of the crawls here" in text
    assert text.index("https://example.org/else") < text.index(URL)
    assert nearest(corpora, "https://exmple.org/page") == ["example.org"]


def test_a_kept_page_shows_its_document(corpora):
    document = dict.fromkeys(DOCUMENT_SCHEMA.names, "x") | {"record_id": "urn:1", "language": "en"}
    document |= {"language_score": 0.97, "n_bytes": 2048, "sha256": "abc"}
    folder = corpora / "data/cleaned_corpus/sample/documents"
    folder.mkdir()
    write_parquet([document], DOCUMENT_SCHEMA, folder / "00000.parquet")
    assert "a document of 2,048 bytes in 'en' (certainty 0.97)" in printed(URL, why(corpora, URL))


def test_why_loads_nothing_of_dvc_dagster_or_training(corpora, root):
    """The answer must take less than a second, and each of these takes longer than that to import."""
    shutil.copy(root / "stemma.py", corpora)
    shutil.copytree(root / "commands", corpora / "commands")
    heavy = ("dvc", "dagster", "mlflow", "torch", "pandas", "matplotlib", "transformers", "datasets")
    code = f"""
import sys
sys.path[0] = {str(corpora)!r}
import stemma
sys.argv = ["stemma", "why", {URL!r}]
try:
    stemma.main()
except SystemExit as done:
    print("exit", done.code, [name for name in {heavy} if name in sys.modules])
"""
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert "below the limit of 50" in done.stdout
    assert done.stdout.splitlines()[-1] == "exit 0 []"


def test_without_a_cleaned_crawl_there_is_nothing_to_search(chain):
    with pytest.raises(WorkspaceError, match="No crawl is cleaned yet"):
        why(chain, URL)
