"""The main text of a page as trafilatura reads it, with the options of FineWeb's pipeline: the profile `faithful`.

trafilatura: Barbaresi 2021, ACL system demonstrations. FineWeb used 1.x, this is 2.x, and three things are done so
that pages which FineWeb's pipeline keeps are kept here too (docs/speed.md has the figures):
- layout tables become plain divs first, since 2.x would write them as one table with a | after each cell;
- the tree is written as lines of text, a cell a line, and not as Markdown, whose markup the quality rules count;
- repeated paragraphs are looked for within a page only. FineWeb's deduplicate=True drops a paragraph that the process
  has seen three times, on this page or another, so that a text depends on which pages came before it.
"""

import logging
from functools import cache
from typing import TYPE_CHECKING

from corpus.extraction.normalize import normalize_line

if TYPE_CHECKING:
    from lxml.etree import _Element
    from lxml.html import HtmlElement

LINES = frozenset(("cell", "code", "graphic", "head", "item", "lb", "list", "p", "quote", "row", "table"))
TABLE_PARTS = ("tbody", "thead", "tfoot", "tr", "td", "th")
MANY_BREAKS = 3  # line breaks in a cell, beyond which it holds text and not a value
SEEN_PARAGRAPHS = 4096  # of one page, that are kept to find repeated ones
FEW_WORDS = 50  # Gopher's minimum: an extraction with fewer is tried again without favouring precision


def faithful_text(page: str) -> str:
    """The main text of a decoded HTML page, a block a line; '' where there is none."""
    _silence()
    precise = _extract(page, replace_layout=True, favor_precision=True)
    if len(precise.split()) >= FEW_WORDS:
        return precise
    tolerant = _extract(page, replace_layout=False, favor_precision=False)
    return tolerant if len(tolerant.split()) >= FEW_WORDS else precise


def _extract(page: str, replace_layout: bool, favor_precision: bool) -> str:
    from trafilatura import bare_extraction
    from trafilatura.deduplication import LRUCache
    from trafilatura.settings import Document
    from trafilatura.utils import load_html

    tree = load_html(page)
    if tree is None:
        return ""
    if replace_layout:
        _replace_layout_tables(tree)
    seen = LRUCache(maxsize=SEEN_PARAGRAPHS)
    found = bare_extraction(
        tree, favor_precision=favor_precision, include_comments=False, deduplicate=seen, with_metadata=False
    )
    if not isinstance(found, Document) or found.body is None:
        return ""
    parts: list[str] = []
    _write(found.body, parts)
    lines = map(normalize_line, "".join(parts).split("\n"))
    return "\n".join(line for line in lines if line)


def _replace_layout_tables(tree: "HtmlElement") -> None:
    """Turn tables that hold paragraphs, other tables or cells of many lines into divs."""
    for table in list(tree.iter("table")):
        cells = (cell for cell in table.iter("td") if sum(1 for _ in cell.iter("br")) > MANY_BREAKS)
        if table.find(".//table") is None and table.find(".//p") is None and next(cells, None) is None:
            continue
        for part in list(table.iter(*TABLE_PARTS)):
            part.tag = "div"
        table.tag = "div"


def _write(element: "_Element", parts: list[str]) -> None:
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
def _silence() -> None:
    """Stop trafilatura's log lines about pages without text; the ledger records those already."""
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
