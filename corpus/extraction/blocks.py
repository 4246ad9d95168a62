"""A page as lines of text, each with the block elements ("boxes") that contain it.

Lexbor parses the page as a browser does (selectolax); one walk over its tree gathers text into lines (a block
element or a line break ends one) and keeps for each line its boxes: their tags, and hints from their class and id
("sidebar", "comments", "article-body"). The hint words follow common usage on the web, after Readability's and
boilerpipe's lists; how much weight each has is not decided here but fitted (prose.py).
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from corpus.extraction.normalize import INVISIBLE, normalize_line

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
CELLS = frozenset(("td", "th"))
BUTTONS = frozenset(("button", "label"))
NAME_CHARS = 200  # characters of a class attribute or an id that are searched for hints
TITLE_CHARS = 500
CELL_CHARS = 120  # a longer cell belongs to a layout table, not to a data table
HINT_WORDS = (  # hint, and the pattern that one word of a class name or an id matches
    ("nav", r"nav|menu|crumb|pagina|pager|^tabs?$|^skip|categor|topic"),
    ("footer", r"foot|copyright|legal|disclaim|imprint|impressum|colophon"),
    ("header", r"^header|masthead|logo|brand"),
    ("aside", r"^side|sidebar|widget|rail$|^right|^left|^aside|modul|gadget|portlet|secondary|sticky"),
    ("comment", r"comment|^kommentar|disqus|respon[ds]|^repl(y|ies)|discuss|forum|feedback|^review|guestbook|koment"),
    ("related", r"relat|recommend|^more|readmore|popular|trend|latest|teaser|similar|^also|suggest|outbrain|taboola"
                r"|^most|^top|recent|archiv|preview|carousel|^next$|^prev|explore|recirc|^card|^grid"),
    ("share", r"shar|social|facebook|twitter|whatsapp|follow|^likes?$|addthis|bookmark|^print|^e?mail|^rss|^vote|rating"
              r"|tool|^actions?$|button|^btn|icon"),
    ("ad", r"^ads?$|advert|sponsor|banner|reklam|werbung|anzeige|publicid|promo|^shop|product|price|affiliat|donat"),
    ("overlay", r"cookie|consent|gdpr|popup|modal|overlay|lightbox|newsletter|subscri|login|sign(in|up)|regist|paywall"
                r"|search|contact|notif|alert|warning|^form|^input"),
    ("meta", r"meta|author|byline|^by$|^dates?$|^time|publish|pubdate|credit|source|^info|^tags?$|label|keyword|licen"
             r"|profile|^bio|avatar|rubric|section"),
    ("figure", r"caption|imag|^img|photo|foto|^pic|figure|gallery|slide|video|media|embed|thumb"),
    ("content", r"content|articl|^body|bodytext|entry|story|^text|txt$|^post|^main|detail|^news|blog|prose|richtext"
                r"|markdown|^copy|^single|^artic|inhalt|tresc|paragraph"),
    ("title", r"title|headlin|heading|subject"),
    ("lead", r"^lead|intro|summary|abstract|standfirst|excerpt|subtitle|^deck|perex|vorspann|chapo"),
    ("hidden", r"hidden|^hide|invisible|screen|visually|^sr$|noprint|collaps|^none$"),
)  # fmt: skip
TAG_HINTS = {
    **dict.fromkeys(("nav", "menu", "dir"), "nav"),
    **dict.fromkeys(("form", "fieldset", "dialog", "search"), "form"),
    **dict.fromkeys(("figure", "figcaption"), "figure"),
    **dict.fromkeys(("li", "dd", "dt"), "list"),
    **{
        name: name
        for name in ("header", "footer", "aside", "article", "main", "blockquote", "table", "button")
    },
    "address": "meta",
    "label": "button",
}
HINTS = tuple(dict.fromkeys([*(name for name, _ in HINT_WORDS), *TAG_HINTS.values(), "unseen"]))
BIT = {name: 1 << number for number, name in enumerate(HINTS)}
# Hints hold for everything inside a box, but these are ignored on a box that contains most of a page's prose.
PERIPHERAL = sum(BIT[name] for name in HINTS if name not in ("content", "article", "main", "title", "table"))
_PATTERNS = [(BIT[name], re.compile(pattern)) for name, pattern in HINT_WORDS]
_TAG_BITS = {tag: BIT[name] for tag, name in TAG_HINTS.items()}
_UNSEEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[a-z]{2,}")

# What the walk does with an element, by tag. Tags not named here are inline.
_SKIP, _NAMED, _PLAIN, _LINK, _BREAK = range(5)
_TAGS = {
    _SKIP: "script style noscript template svg math iframe object embed canvas audio video map select option optgroup "
    "textarea datalist progress meter head link meta frameset noframes -comment",
    _NAMED: "address article aside blockquote center details dialog dir div dl fieldset figcaption figure footer form "
    "frame header hgroup hr legend main menu nav ol p pre search section summary table td th ul h1 h2 h3 h4 h5 h6",
    _PLAIN: "li dd dt tr tbody thead tfoot caption button label",
    _LINK: "a",
    _BREAK: "br",
}
_DOES = {tag: does for does, tags in _TAGS.items() for tag in tags.split()}
# Lexbor numbers its tags; reading a tag's name costs more than everything else done with a node.
TEXT = 2  # LXB_TAG__TEXT, lexbor/tag/const.h
OWN_TAGS = 256  # tags that Lexbor knows have lower numbers; others are numbered page by page, far above
_KNOWN: dict[int, tuple[str, int | None]] = {}


class Box:
    """A block element: tag, class, hints and parent, and counts of the text inside it (filled by prose.py)."""

    __slots__ = (
        "chars",
        "hints",
        "home",
        "lines",
        "linked",
        "name",
        "parent",
        "prose",
        "row",
        "tag",
    )  # fmt: skip

    def __init__(self, tag: str, parent: "Box | None", hints: int, name: str | None):
        self.tag, self.parent, self.hints, self.name = tag, parent, hints, name
        self.row: Box | None = parent.row if parent else None  # the table row that contains it
        self.chars = self.linked = self.lines = self.prose = 0
        self.home: int | None = None  # levels below the innermost box that holds most of the page's prose


class Line:
    """A line of a page: its text, how many of its characters are inside links, the number of links, box and kind.

    The kind is the tag of the box ("p", "h1", "li" …), or "tr" for a row of a data table.
    """

    __slots__ = ("box", "kind", "linked", "links", "text")

    def __init__(self, text: str, linked: int, links: int, box: Box, kind: str):
        self.text, self.linked, self.links, self.box, self.kind = text, linked, links, box, kind


@lru_cache(maxsize=1 << 16)
def name_hints(name: str) -> int:
    """The hints of class names or an id, as bits of HINTS."""
    hints = 0
    for word in _WORD.findall(_CAMEL.sub(" ", name).lower()):
        hints |= _word_hints(word)
    return hints


@lru_cache(maxsize=1 << 16)
def _word_hints(word: str) -> int:
    return sum([bit for bit, pattern in _PATTERNS if pattern.search(word)])


class Page:
    """`lines` in reading order, `boxes` with every parent before its children, and the document's own `title`."""

    def __init__(self, html: str):
        from selectolax.lexbor import LexborHTMLParser

        self.lines: list[Line] = []
        self.boxes: list[Box] = []
        tree = LexborHTMLParser(html)
        head = tree.head
        title = head.css_first("title") if head else None
        self.title = normalize_line(title.text()[:TITLE_CHARS]) if title else ""
        if tree.body:
            self._walk(tree.body)
            self.lines = _join_cells(self.lines)

    def _walk(self, body: "LexborNode") -> None:
        """Fill `lines` and `boxes`. Without recursion: pages nest thousands of elements deep."""
        current = root = Box("body", None, 0, None)
        parts: list[tuple[str, bool]] = []  # pieces of the current line, and whether each is inside a link
        boxes, links, known = self.boxes, 0, _KNOWN.get
        boxes.append(root)
        # Where to go on above: the next element there, and the box and link that contain it.
        above: list[tuple[LexborNode | None, Box, bool]] = []
        node, inside, linked = body.child, root, False
        while node is not None or above:
            if node is None:
                node, inside, linked = above.pop()
                continue
            number = node.tag_id
            if number == TEXT:
                text = node.text_content or ""
                if inside is not current:
                    if parts:
                        self._add(current, parts, links)
                        parts, links = [], 0
                    current = inside
                if parts or not text.isspace():
                    parts.append((text, linked))
                node = node.next
                continue
            tag, does = known(number) or _tag_of(node)
            if does == _SKIP:
                node = node.next
                continue
            box, link = inside, linked
            if does == _LINK:
                links += 1
                link = True
            elif does is not None:
                if parts:
                    self._add(current, parts, links)
                    parts, links = [], 0
                if does == _NAMED:
                    box = _named(node, tag, inside)
                    boxes.append(box)
                elif does == _PLAIN:
                    box = _plain(tag, inside)
                    boxes.append(box)
            below = node.child
            if below is None:
                node = node.next
            else:
                above.append((node.next, inside, linked))
                node, inside, linked = below, box, link
        if parts:
            self._add(current, parts, links)

    def _add(self, box: Box, parts: list[tuple[str, bool]], links: int) -> None:
        """Add a line made of the given pieces of text, each inside a link or not."""
        linked = 0
        if len(parts) == 1:
            raw, inside = parts[0]
            if inside:
                linked = len(raw)
        else:
            raw = "".join([part for part, _ in parts])
            for part, inside in parts:
                if inside:
                    linked += len(part)
        if box.tag == "pre":
            text = "\n".join([INVISIBLE.sub("", line).rstrip() for line in raw.split("\n")]).strip("\n")
        else:
            text = normalize_line(raw)
        if text:
            self.lines.append(Line(text, min(linked, len(text)), links, box, box.tag))


def _tag_of(node: "LexborNode") -> tuple[str, int | None]:
    """The tag of an element, and how the walk treats it; cached by Lexbor's number of the tag."""
    tag = node.tag or ""
    found = tag, _DOES.get(tag)
    if node.tag_id < OWN_TAGS:
        _KNOWN[node.tag_id] = found
    return found


def _named(node: "LexborNode", tag: str, parent: Box) -> Box:
    """The box of an element whose class, id and style are read."""
    hints = _TAG_BITS.get(tag, 0)
    attributes = node.attributes
    if not attributes:
        return Box(tag, parent, hints, None)
    name, own = attributes.get("class"), attributes.get("id")
    if name:
        hints |= name_hints(name[:NAME_CHARS])
    if own:
        hints |= name_hints(own[:NAME_CHARS])
    style = attributes.get("style")
    if "hidden" in attributes or (style and _UNSEEN.search(style)):
        hints |= BIT["unseen"]
    return Box(tag, parent, hints, name and name[:NAME_CHARS])


def _plain(tag: str, parent: Box) -> Box:
    box = Box(tag, parent, _TAG_BITS.get(tag, 0), None)
    if tag == "tr":
        box.row = box
    return box


def _join_cells(lines: list[Line]) -> list[Line]:
    """Rows of a data table, whose cells are one short line each, as one line: "name | value"."""
    if not any(line.kind in CELLS for line in lines):
        return lines
    joined: list[Line] = []
    at = 0
    while at < len(lines):
        row, stop = lines[at].box.row, at + 1
        while row is not None and stop < len(lines) and lines[stop].box.row is row:
            stop += 1
        cells = lines[at:stop]
        separate = len({id(cell.box) for cell in cells}) == len(cells) > 1
        if (
            row is not None
            and separate
            and all(cell.kind in CELLS and len(cell.text) <= CELL_CHARS for cell in cells)
        ):
            text = " | ".join([cell.text for cell in cells])
            linked, links = sum(cell.linked for cell in cells), sum(cell.links for cell in cells)
            joined.append(Line(text, linked, links, row, "tr"))
        else:
            joined.extend(cells)
        at = stop
    return joined
