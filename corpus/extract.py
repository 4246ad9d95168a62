"""The main text of a page: resiliparse's reading of the page, then the best run of prose lines in it.

Bytes are decoded as a browser would (byte order mark, HTTP charset, meta tag, then a guess). resiliparse leaves out
scripts, navigation and comments by their markup; the lines that remain are scored, prose for and links, menus and
boilerplate against, and the run of lines with the highest sum is the text (maximum subsequence segmentation,
Pasternack & Roth, "Extracting article text from the web", WWW 2009). The page's h1 comes first.
"""

import html
import re
import unicodedata
from dataclasses import dataclass

from corpus.charset import decode
from corpus.words import CJK

TAG = re.compile(r"<[^>]*>")
LINK = re.compile(r"<a\b[^>]*>(.*?)</a>")
BLOCK = re.compile(r"\s*<(h[1-6]|p|li|pre)\b")
CJK_SIGN = re.compile(f"[{CJK}]")
PROFILES = ("fast", "faithful")
SPACE = re.compile(r"\s+")
INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufffd]"
)
SENTENCE_END = tuple(".!?…。！？\"”»'’:;)")

# Scores of lines, in words of prose. Chosen by hand on real pages in five languages; benchmark: tests and docs.
PROSE_CAP = 60  # a long paragraph cannot outweigh everything around it
HEADING, SHORT, NOT_PROSE, LINKED, MENU = -2, -6, -3, -8, -12
SHORT_LINE, LONG_LINE = 10, 18  # words


@dataclass(frozen=True, slots=True)
class Line:
    """A block of a page: its kind ('h1'..'h6', 'p', 'li', 'pre', 'text'), text, and characters inside links."""

    kind: str
    text: str
    linked: int = 0


@dataclass(frozen=True, slots=True)
class MainText:
    """What a page says. `title` is the text's first line if the page has a heading of its own, else None."""

    text: str
    title: str | None


def extract_text(html: bytes, url: str | None = None, profile: str = "fast") -> str:
    """The main text of an HTML page, its heading first, one block a line; '' where there is none.

    `html` is the page as served; `url` is accepted for callers that have it and changes nothing; `profile` is one of
    PROFILES. Raises ValueError for another.
    """
    return extract_page(html, profile=profile).text


def extract_page(data: bytes, charset: str | None = None, profile: str = "fast") -> MainText:
    """As extract_text, with the charset of the HTTP header if there was one, and the title told apart."""
    page = decode(data, charset)
    if profile == "faithful":
        from corpus.faithful import faithful_text

        return MainText(faithful_text(page), None)
    if profile != "fast":
        raise ValueError(
            f"There is no extraction profile '{profile}'. The profiles are: {', '.join(PROFILES)}."
        )
    found = main_text(parse_blocks(_markup(page, main_content=True)))
    # Unclosed tags can put all of a page inside its menu, which resiliparse leaves out; then the lines alone decide.
    return found if found.text else main_text(parse_blocks(_markup(page, main_content=False)))


def _markup(page: str, main_content: bool) -> str:
    """resiliparse's minimal HTML of a page."""
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(
        page,
        preserve_formatting="minimal_html",
        main_content=main_content,
        links=True,
        alt_texts=False,
        comments=False,
        post_meta=False,
    )


def normalize_line(line: str) -> str:
    """One line with single spaces, composed characters (NFC) and nothing invisible."""
    if not line.isascii():
        line = unicodedata.normalize("NFC", line)
    return SPACE.sub(" ", INVISIBLE.sub("", line)).strip()


def plain_text(data: bytes, charset: str | None = None) -> MainText:
    """Text that was extracted elsewhere (WET): the same choice of lines, without markup to help."""
    lines = map(normalize_line, decode(data, charset).split("\n"))
    return main_text([Line("text", line) for line in lines if line])


def parse_blocks(markup: str) -> list[Line]:
    """Lines of resiliparse's minimal HTML, in order, with their kind and how much of each is links."""
    lines: list[Line] = []
    open_block = None
    for raw in markup.split("\n"):
        if not raw:
            continue
        start = BLOCK.match(raw)
        kind = start.group(1) if start else open_block or "text"
        if kind != "text":
            open_block = None if f"</{kind}>" in raw else kind
        linked = sum(len(TAG.sub("", inner).strip()) for inner in LINK.findall(raw)) if "<a" in raw else 0
        text = normalize_line(html.unescape(TAG.sub("", raw)))
        if text:
            lines.append(Line(kind, text, linked))
    return lines


def main_text(lines: list[Line]) -> MainText:
    """The run of lines with the highest sum of scores, with the heading before it as title."""
    start, stop = best_run([score(line) for line in lines])
    if start == stop:
        return MainText("", None)
    title = _title(lines, start, stop)
    body = [line.text for line in lines[start:stop] if line.linked <= 0.8 * len(line.text)]
    if title and title in body[:1]:
        body = body[1:]
    return MainText("\n".join([title, *body] if title else body), title)


def _title(lines: list[Line], start: int, stop: int) -> str | None:
    """The last h1 before the text or on its first line; else a heading at most four lines above it."""
    if lines[start].kind == "h1":
        return lines[start].text
    before = [line for line in lines[:start] if line.kind == "h1"]
    near = [line for line in lines[max(0, start - 4) : start] if line.kind in ("h2", "h3")]
    chosen = before[-1:] or near[-1:]
    return chosen[0].text if chosen else None


def score(line: Line) -> float:
    """How much a line looks like running text: words of prose, or a penalty."""
    text, size = line.text, len(line.text)
    if line.kind[0] == "h":
        return HEADING
    if line.kind == "pre":
        return 0
    if "|" in text or "©" in text:
        return MENU
    if line.linked > 0.5 * size:
        return LINKED
    words = len(text.split()) + (0 if text.isascii() else 0.5 * len(CJK_SIGN.findall(text)))
    ends = text.endswith(SENTENCE_END)
    if words < SHORT_LINE:
        return SHORT + 4 * ends
    if ends or line.kind == "p":
        return min(PROSE_CAP, words * (1 - line.linked / size))
    if words >= LONG_LINE:
        return min(PROSE_CAP, 0.5 * words * (1 - line.linked / size))
    return NOT_PROSE


def best_run(scores: list[float]) -> tuple[int, int]:
    """[start, stop) of the run with the highest sum; (0, 0) where no score is above zero."""
    best, span = 0.0, (0, 0)
    total, start = 0.0, 0
    for at, value in enumerate(scores):
        if total <= 0:
            total, start = 0.0, at
        total += value
        if total > best:
            best, span = total, (start, at + 1)
    return span
