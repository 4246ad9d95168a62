"""The HTML report: complete, harmless, deterministic, and consistent with the ledger."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from corpus.clean import CleanConfig, clean_crawl
from corpus.ledger import read_ledger
from corpus.report import samples
from corpus.report.html_page import render, write_report
from corpus.report.samples import draw, read_texts
from corpus.rules.quality import DEFAULT_THRESHOLDS
from corpus.warc_writer import WarcWriter

PROSE = "The {} river runs through the valley, and the people of the town walk beside it in the evening. "
CONFIG = CleanConfig(thresholds=dict.fromkeys(DEFAULT_THRESHOLDS) | {"gopher_min_words": 50})
EVIL = '<script>alert("x")</script><img src=https://evil.example/x onerror=alert(1)>'


class Page(HTMLParser):
    """What a browser would see: tags, their attributes, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.said: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture(scope="module")
def crawl(tmp_path_factory) -> dict[str, Path]:
    """40 pages: good ones, copies, too short ones, German ones, and some with a script."""
    path = tmp_path_factory.mktemp("crawl") / "pages.warc.gz"
    with WarcWriter(path) as writer:
        for number in range(40):
            kind = ("good", "short", "german", "evil", "copy")[number % 5]
            body = "".join(
                f"<p>{PROSE.format(f'{word}{number}') * 2}</p>" for word in ("long", "green", "cold")
            )
            if kind == "short":
                body = "<p>This page is too short to be of any use to anybody, is it not? Write to ann@firm.com.</p>"
            elif kind == "german":
                body = f"<p>{'Der Fluss läuft durch das Tal und die Leute gehen abends spazieren. ' * 9}</p>"
            elif kind == "evil":
                body = f"<p>What follows is {EVIL.replace('<', '&lt;')} and that is all there is to say.</p>"
            elif kind == "copy":
                body = "".join(f"<p>{PROSE.format(word) * 2}</p>" for word in ("long", "green", "cold"))
            page = f"<html><body><h1>Page</h1><article>{body}</article></body></html>"
            url = f"https://{kind}.example/{number}" + ("?q=<script>" if kind == "evil" else "")
            write_page(writer, url, page, number)
    return {path.name: path}


def write_page(writer: WarcWriter, url: str, page: str, number: int) -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    writer.write(
        "response", f"urn:uuid:{number:08d}", "2026-01-01T00:00:00Z", (head + page).encode(), url=url
    )


@pytest.fixture(scope="module")
def cleaned(crawl, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cleaned")
    clean_crawl(list(crawl.items()), folder / "out", folder / "work", CONFIG, "toy", workers=0)
    return folder / "out"


@pytest.fixture(scope="module")
def html(cleaned, crawl) -> str:
    return render(cleaned, crawl)


def test_the_report_has_no_script_and_loads_nothing(html):
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "form", "base", "video"}
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    attributes = [(name, value or "") for _, found in page.tags for name, value in found.items()]
    assert not [name for name, _ in attributes if name.startswith("on")]
    assert all(value.startswith("#") for name, value in attributes if name in ("href", "src"))
    assert not re.search(r"url\(|@import", html)


def test_untrusted_pages_are_shown_as_text(html):
    page = Page(html)
    said = "".join(page.said)
    assert EVIL in said and "https://evil.example/3?q=<script>" in said


def test_every_rule_of_the_ledger_shows_its_pages_with_value_and_reason(html, cleaned):
    said = " ".join("".join(Page(html).said).split())
    rows = read_ledger(cleaned).to_pylist()
    dropped = [row for row in rows if row["outcome"] != "kept"]
    assert {row["rule"] for row in dropped} >= {"other_language", "duplicate_text", "gopher_min_words"}
    assert all(row["url"] in said for row in dropped)  # fewer than twenty a rule
    short = next(row for row in dropped if row["rule"] == "gopher_min_words")
    assert f"measured {short['value']:.0f}, limit 50" in said
    kept = {row["record_id"]: row["url"] for row in rows if row["outcome"] == "kept"}
    twin = next(kept[row["duplicate_of"]] for row in dropped if row["duplicate_of"])
    assert f"kept in its place: {twin}" in said


def test_links_inside_the_report_have_targets(html):
    tags = Page(html).tags
    places = {found["id"] for _, found in tags if "id" in found}
    links = {found["href"][1:] for tag, found in tags if tag == "a"}
    assert links and links <= places


def test_personal_data_of_dropped_pages_is_not_shown(html):
    assert "ann@firm.com" not in html and "&lt;email&gt;" in html


def test_the_report_is_deterministic_and_names_no_path_of_this_machine(html, cleaned, crawl, tmp_path):
    again = write_report(cleaned, crawl, tmp_path / "reports" / "toy.html")
    assert again.read_text() == html
    assert str(tmp_path.parent) not in html and str(Path.home()) not in html
    assert [path.name for path in again.parent.iterdir()] == ["toy.html"]


def test_without_the_crawl_the_report_notes_that_its_files_are_missing(cleaned):
    assert "not in a file that is here" in render(cleaned, {})


def test_a_page_that_crashes_the_parser_loses_only_its_own_text(crawl, cleaned, monkeypatch, tmp_path):
    rows = [row for found in draw(cleaned)[0] for row in found.rows][:6]
    whole = read_texts(rows, crawl, 300)
    broken = (Path(samples.__file__).parent / "samples.py").read_text()
    broken = broken.replace(
        '    if row["rule"] in NOT_READ_AGAIN',
        f"""    if row["record_id"] == {rows[2]["record_id"]!r}:
        os.abort()
    if row["rule"] in NOT_READ_AGAIN""",
    )
    (tmp_path / "samples_that_abort.py").write_text(broken)
    real = samples.subprocess.run

    def run(command, env, **options):
        path = f"{tmp_path}:{env['PYTHONPATH']}"
        return real([*command[:2], "samples_that_abort"], env=env | {"PYTHONPATH": path}, **options)

    monkeypatch.setattr(samples.subprocess, "run", run)
    found = read_texts(rows, crawl, 300)
    assert "killed the parser" in found[2][1]
    assert found[:2] + found[3:] == whole[:2] + whole[3:]
