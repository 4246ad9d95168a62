"""A page as lines of text, each with what its place in the page says about it.

Lexbor parses the page as a browser does (selectolax); one walk over its tree gathers text into lines (a block
element or a line break ends one) and remembers for each line the boxes that it stands in: their tags, and what their
class and id say ("sidebar", "comments", "article-body"). The words of the hints are the web's own habits, after
Readability's and boilerpipe's lists; how much each of them says is not decided here but fitted (prose.py).
"""

import re
from functools import lru_cache

from corpus.extraction.normalize import INVISIBLE, normalize_line

HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
CELLS = frozenset(("td", "th"))
BUTTONS = frozenset(("button", "label"))
NAME_CHARS = 200  # of a class attribute or an id that are looked at
TITLE_CHARS = 500
CELL_CHARS = 120  # a longer cell is part of a layout, not of a table of data
HINT_WORDS = (  # hint: words in a class name or an id that say so, as patterns over one word of letters
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
# What a box says of itself is said of all that stands in it, but these are not believed of most of a page.
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
# Lexbor numbers its tags; to read a name takes longer than all else that is asked of a node.
TEXT = 2  # LXB_TAG__TEXT, lexbor/tag/const.h
OWN_TAGS = 256  # numbers of tags that Lexbor knows are below; others are numbered page by page, far above
_KNOWN: dict[int, tuple[str, int | None]] = {}


class Box:
    """A block element: tag, class, hints and parent, and what was counted of the text in it (prose.py)."""

    __slots__ = (
        "chars",
        "depth",
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
        self.row = parent.row if parent else None
        self.depth = parent.depth + 1 if parent else 0
        self.chars = self.linked = self.lines = self.prose = 0
        self.home = None


class Line:
    """A line of a page: its text, the characters of it inside links, the number of links, its box, and its kind.

    The kind is the tag of the box ("p", "h1", "li" …), or "tr" for a row of a table of data.
    """

    __slots__ = ("box", "kind", "linked", "links", "text")

    def __init__(self, text: str, linked: int, links: int, box: Box, kind: str):
        self.text, self.linked, self.links, self.box, self.kind = text, linked, links, box, kind


@lru_cache(maxsize=1 << 16)
def name_hints(name: str) -> int:
    """What class names or an id say, as bits of HINTS."""
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

    def _walk(self, body) -> None:
        current = root = Box("body", None, 0, None)
        boxes, parts, links, known = self.boxes, [], 0, _KNOWN.get
        boxes.append(root)
        # What is left to do above: the next element there, and the box and link that it stands in.
        above, node, inside, linked = [], body.child, root, False
        while node is not None or above:
            if node is None:
                node, inside, linked = above.pop()
                continue
            number = node.tag_id
            if number == TEXT:
                text = node.text_content
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
        """A line of the given pieces of text, each inside a link or not."""
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


def _tag_of(node) -> tuple[str, int | None]:
    """The tag of an element, and what is done with it; remembered for the next of the kind."""
    tag = node.tag
    found = tag, _DOES.get(tag)
    if node.tag_id < OWN_TAGS:
        _KNOWN[node.tag_id] = found
    return found


def _named(node, tag: str, parent: Box) -> Box:
    """The box of an element whose class, id and style are looked at."""
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
    """Rows of a table of data, whose cells are one short line each, as one line: "name | value"."""
    if not any(line.kind in CELLS for line in lines):
        return lines
    joined: list[Line] = []
    at = 0
    while at < len(lines):
        row, stop = lines[at].box.row, at + 1
        while row is not None and stop < len(lines) and lines[stop].box.row is row:
            stop += 1
        cells = lines[at:stop]
        apart = len({id(cell.box) for cell in cells}) == len(cells) > 1
        if apart and all(cell.kind in CELLS and len(cell.text) <= CELL_CHARS for cell in cells):
            text = " | ".join([cell.text for cell in cells])
            linked, links = sum(cell.linked for cell in cells), sum(cell.links for cell in cells)
            joined.append(Line(text, linked, links, row, "tr"))
        else:
            joined.extend(cells)
        at = stop
    return joined
