"""Main-text extraction: boilerplate, titles, malformed pages, real pages against a reference."""

import gzip
import json
from itertools import islice

import numpy as np
import pytest

from corpus.config import CleanConfig
from corpus.extraction import prose
from corpus.extraction.blocks import Page
from corpus.extraction.extract import extract_page, extract_text, plain_text
from corpus.extraction.prose_trees import MODEL
from corpus.truth import word_f1
from corpus.warc import read_records

PARAGRAPH = "The old mill stands at the bend of the river, where the road from the village meets the bridge. "
PAGE = f"""<!doctype html><html><head><title>Site – Mill</title><script>var x = 1;</script></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/a">About</a></li></ul></nav>
<div class="menu"><a href="/x">One</a> | <a href="/y">Two</a> | <a href="/z">Three</a></div>
<main><h1>The  Old Mill</h1><p>{PARAGRAPH * 2}</p><p>{PARAGRAPH} It was <a href="/b">built</a> in 1790.</p></main>
<div><a href="/1">Read more about bridges and rivers of the county and its neighbours</a></div>
<footer>© 2026 Site. All rights reserved.</footer></body></html>"""


def test_the_main_text_is_extracted_with_its_title_first_and_without_boilerplate():
    lines = extract_text(PAGE.encode()).split("\n")
    assert lines[0] == "The Old Mill" and len(lines) == 3
    assert lines[2].endswith("It was built in 1790.")


def test_a_page_without_prose_has_no_text():
    menu = "".join(f'<li><a href="/{i}">Item {i}</a></li>' for i in range(50))
    assert extract_text(f"<body><ul>{menu}</ul></body>".encode()) == ""
    assert extract_text(b"") == ""


def test_any_bytes_give_a_text():
    for data in (b"\x00" * 1000, bytes(range(256)) * 20, b"<" * 10_000, b"<p>" * 5_000, b"&#xD800;&#0;"):
        assert isinstance(extract_text(data), str)


def test_escaped_markup_in_the_text_is_kept():
    page = f"<main><h1>A &lt; B</h1><p>{PARAGRAPH} Use &lt;b&gt; &amp; go on.</p></main>"
    text = extract_text(page.encode())
    assert text.startswith("A < B\n") and text.endswith("Use <b> & go on.")


def test_boilerplate_of_plain_text_is_dropped():
    page = plain_text(("Home\nAbout\nLogin\n" + (PARAGRAPH + "\n") * 3 + "© 2026\nHome\n").encode())
    assert page.text.split("\n") == [PARAGRAPH.strip()] * 3 and page.title is None


def test_the_faithful_profile_is_trafilatura_as_fineweb_calls_it_and_does_not_depend_on_order():
    from trafilatura import extract

    pages = [
        PAGE.encode(),
        *(f"<p>{PARAGRAPH * 3}</p><p>Page {n}: {PARAGRAPH * 2}</p>".encode() for n in range(6)),
    ]
    texts = [extract_text(page, profile="faithful") for page in pages]
    assert texts == [extract_text(page, profile="faithful") for page in pages[::-1]][::-1]
    assert texts[0] == extract(PAGE, favor_precision=True, include_comments=False)
    assert PARAGRAPH.strip() in texts[0] and "Home" not in texts[0]
    assert extract_text(b"", profile="faithful") == extract_text(b"\x00<", profile="faithful") == ""


def test_the_faithful_profile_writes_layout_tables_as_lines_without_bars():
    cells = "".join(
        f"<tr><td><p>{PARAGRAPH} Number {n} of them.</p></td><td>&nbsp;</td></tr>" for n in range(4)
    )
    page = f"<html><body><table><tr><td><table>{cells}</table></td></tr></table></body></html>"
    text = extract_text(page.encode(), profile="faithful")
    assert "|" not in text and len(text.split("\n")) == 4 and "Number 3" in text


def test_an_unknown_profile_is_refused_with_a_list_of_the_known_ones():
    with pytest.raises(ValueError, match="fast, faithful"):
        extract_text(b"<p>x", profile="best")
    with pytest.raises(ValueError, match="fast, faithful"):
        CleanConfig(profile="best")


ARTICLE = f"""<!doctype html><html><head><title>The Old Mill | Site</title></head><body>
<div id="cookie-banner"><p>We use cookies to improve your experience on this site. By browsing on you agree.</p>
<button>Accept all</button></div>
<header><div class="logo">The County Site</div>
<ul class="menu"><li><a href="/">Home</a><li><a href="/a">About</a></ul></header>
<div class="breadcrumb"><a href="/">Home</a> &gt; <a href="/m">Mills</a></div>
<article class="post"><h1>The Old Mill</h1><p class="byline">By A. Writer</p>
<p>{PARAGRAPH * 2}</p>
<h2>How it was built</h2>
<p>{PARAGRAPH} It was <b>built</b> in <a href="/1790">1790</a>.</p>
<ul><li>Two wheels of oak, each three metres high, turned by the river.</li>
<li>Four pairs of stones, brought over the hills from the quarries of the north.</li></ul>
<blockquote><p>“No mill in the county has ground more flour,” wrote the vicar in his diary.</p></blockquote>
<table><tr><th>Year</th><th>Flour in tons</th></tr>
<tr><td>1800</td><td>120</td></tr><tr><td>1850</td><td>310</td></tr></table>
<p>The miller's sum was simple, and so is the program that does it today:</p>
<pre><code>def flour(grain):
    return 0.75 * grain</code></pre>
<p>{PARAGRAPH * 3}</p></article>
<div class="related-posts"><h3>Related articles</h3><ul><li><a href="/2">Bridges of the county and who built them</a>
<li><a href="/3">Seven rivers that every child should know</a></ul></div>
<div id="comments" class="comments"><h3>2 comments</h3>
<div class="comment-body"><p>Great post, I was there last year!</p></div></div>
<footer><p>© 2026 The County Site. All rights reserved. <a href="/privacy">Privacy</a></p></footer></body></html>"""


@pytest.mark.parametrize(
    "furniture",
    [
        "cookies",
        "Accept all",
        "County Site",
        "About",
        "Mills",
        "Related",
        "Bridges",
        "Great post",
        "reserved",
    ],
)
def test_boilerplate_around_an_article_is_dropped(furniture):
    assert furniture not in extract_text(ARTICLE.encode())


@pytest.mark.parametrize(
    "part",
    ["How it was built", "built in 1790.", "Four pairs of stones", "“No mill", "The miller's sum"],
)
def test_headings_lists_and_quotes_inside_an_article_are_kept(part):
    assert part in extract_text(ARTICLE.encode())


def test_a_data_table_gives_a_row_a_line_and_code_keeps_its_layout():
    text = extract_text(ARTICLE.encode())
    assert "\n1800 | 120\n1850 | 310\n" in text
    assert "\ndef flour(grain):\n    return 0.75 * grain\n" in text


def test_unclosed_tags_lose_no_text():
    page = ARTICLE
    for tag in ("</p>", "</li>", "</td>", "</tr>", "</ul>", "</article>", "</body>", "</html>"):
        page = page.replace(tag, "")
    text = extract_text(page.encode())
    assert "The Old Mill\n" in text and text.count(PARAGRAPH.strip()) == 6 and "Four pairs" in text
    assert "Home" not in text and "Bridges" not in text


def test_a_page_with_a_layout_table_is_read():
    menu = "".join(f"<tr><td><a href=/{n}>Chapter {n}</a></td></tr>" for n in range(20))
    body = "".join(f"<p>{PARAGRAPH}Part {n}.</p>" for n in range(5))
    page = f"<table><tr><td width=150><table>{menu}</table></td><td><h1>Mills</h1>{body}</td></tr></table>"
    assert extract_text(page.encode()).split("\n") == ["Mills", *(f"{PARAGRAPH}Part {n}." for n in range(5))]


def test_input_that_is_not_html_gives_its_text_or_nothing():
    assert extract_text(b"") == extract_text(b"   \n") == extract_text(b"%PDF-1.4\n\x00\x01") == ""
    assert extract_text(b'{"a": [1, 2, 3]}') == ""
    assert PARAGRAPH.strip() in extract_text((PARAGRAPH * 5).encode())


def test_deep_nesting_and_huge_pages_are_read():
    deep = "<div>" * 2000 + f"<p>{PARAGRAPH * 3}</p>" + "</div>" * 2000
    assert PARAGRAPH.strip() in extract_text(deep.encode())
    line = f"<p>{PARAGRAPH * 5000}</p>"
    assert extract_text(line.encode()) == (PARAGRAPH * 5000).strip()
    many = f"<h1>Mills</h1><p>{PARAGRAPH}</p>" * 6000
    assert extract_text(many.encode()).count(PARAGRAPH.strip()) > 5900


def test_scores_of_all_lines_equal_the_trees_applied_line_by_line():
    """The vectorised scores against a plain evaluation of the trees."""
    page = Page(ARTICLE)
    _, table = prose.features(page)
    expected = []
    for line in table.T:
        total = MODEL["bias"]
        for tree in MODEL["trees"]:
            leaf = 0
            for level, (feature, least) in enumerate(tree["splits"]):
                leaf |= int(line[prose.FEATURES.index(feature)] > np.float32(least)) << level
            total += tree["leaves"][leaf]
        expected.append(total)
    assert prose.judge(table, prose.prepare(MODEL)).tolist() == expected


def test_segments_of_real_pages_are_found_as_well_as_by_trafilatura(shared_data):
    """Segments that must and must not be in the text; each file's first 25 pages. All 990: docs/extraction.md."""
    right = false = missed = 0
    for row, text in real_texts(shared_data, "trafilatura-eval", 25):
        flat = " ".join(text.split())
        found = sum(" ".join(segment.split()) in flat for segment in row["must"])
        right, missed = right + found, missed + len(row["must"]) - found
        false += sum(" ".join(segment.split()) in flat for segment in row["must_not"])
    assert right / (right + false) > 0.9 and right / (right + missed) > 0.92


def test_real_pages_in_five_languages(shared_data):
    """Mean word F1 against daniel's reference texts, each file's first 25. All 1,198: docs/extraction.md."""
    scores = {}
    for row, text in real_texts(shared_data, "daniel", 25):
        scores.setdefault(row["language"], []).append(word_f1(text, row["text"])[2])
    means = {language: sum(values) / len(values) for language, values in scores.items()}
    assert set(means) == {"en", "zh", "pl", "el", "ru"}
    assert sum(means.values()) / 5 > 0.9 and min(means.values()) > 0.84, means


def real_texts(shared_data, source: str, pages: int):
    """(gold row, text of the profile fast) of each archive's first pages of a source."""
    with gzip.open(shared_data / "crawl" / "gold.jsonl.gz", "rt") as file:
        gold = {row["record_id"]: row for row in map(json.loads, file) if row["source"] == source}
    for path in sorted((shared_data / "crawl").glob("*.warc.gz")):
        records = (record for record in read_records(path, path.name) if record.record_id in gold)
        for record in islice(records, pages):
            yield gold[record.record_id], extract_page(record.payload, record.http_charset).text
