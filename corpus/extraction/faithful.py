"""The main text of a page as trafilatura reads it, with the options of FineWeb's pipeline: the profile `faithful`.

trafilatura: Barbaresi 2021, ACL system demonstrations. FineWeb used 1.x, this is 2.x, and three things are done so
that pages which FineWeb's chain keeps are kept here too (docs/speed.md has the figures):
- tables that lay out a page become plain boxes first, since 2.x would write them as one table with a bar a cell;
- the tree is written as lines of text, a cell a line, and not as Markdown, whose signs the quality rules count;
- what a page repeats is looked for within that page. FineWeb's deduplicate=True drops a paragraph that the process
  has seen three times, in this page or another, so that a text depends on which pages came before it.
"""

import logging
from functools import cache

from corpus.extraction.normalize import normalize_line

LINES = frozenset(("cell", "code", "graphic", "head", "item", "lb", "list", "p", "quote", "row", "table"))
TABLE_PARTS = ("tbody", "thead", "tfoot", "tr", "td", "th")
MANY_BREAKS = 3  # line breaks in a cell, beyond which it holds text and not a value
REMEMBERED = 4096  # paragraphs of one page
FEW_WORDS = 50  # Gopher's least: a reading that gives fewer is tried again without favouring precision


def faithful_text(page: str) -> str:
    """The main text of a decoded HTML page, a block a line; '' where there is none."""
    _hush()
    boxes = _read(page, True, favor_precision=True)
    if len(boxes.split()) >= FEW_WORDS:
        return boxes
    plain = _read(page, False, favor_precision=False)
    return plain if len(plain.split()) >= FEW_WORDS else boxes


def _read(page: str, unlaid: bool, favor_precision: bool) -> str:
    from trafilatura import bare_extraction
    from trafilatura.deduplication import LRUCache
    from trafilatura.utils import load_html

    tree = load_html(page)
    if tree is None:
        return ""
    if unlaid:
        _unlay(tree)
    seen = LRUCache(maxsize=REMEMBERED)
    found = bare_extraction(
        tree, favor_precision=favor_precision, include_comments=False, deduplicate=seen, with_metadata=False
    )
    if found is None or found.body is None:
        return ""
    parts: list[str] = []
    _write(found.body, parts)
    lines = map(normalize_line, "".join(parts).split("\n"))
    return "\n".join(line for line in lines if line)


def _unlay(tree) -> None:
    """Turn tables that hold paragraphs, other tables or cells of many lines into boxes."""
    for table in list(tree.iter("table")):
        cells = (cell for cell in table.iter("td") if sum(1 for _ in cell.iter("br")) > MANY_BREAKS)
        if table.find(".//table") is None and table.find(".//p") is None and next(cells, None) is None:
            continue
        for part in list(table.iter(*TABLE_PARTS)):
            part.tag = "div"
        table.tag = "div"


def _write(element, parts: list[str]) -> None:
    """The text of an element and what follows it, with line ends after blocks."""
    if element.tag == "item":
        parts.append("- ")
    parts.append(element.text or "")
    for child in element:
        _write(child, parts)
    if element.tag in LINES:
        parts.append("\n")
    parts.append(element.tail or "")


@cache
def _hush() -> None:
    """trafilatura logs every page it finds no text in; the ledger says so already."""
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
