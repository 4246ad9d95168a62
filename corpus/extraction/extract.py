"""The main text of a page, by one of two profiles.

fast      our own: Lexbor's parse, a walk over its tree (blocks.py), and small fitted trees that say which lines are
          text (prose.py). The page's heading comes first. How well and how quickly: docs/extraction.md.
faithful  trafilatura, called as FineWeb's chain calls it (faithful.py).

Text that somebody else took out of its page (WET) has no markup to judge by: of its lines the best run of prose is
taken (maximum subsequence segmentation, Pasternack & Roth, "Extracting article text from the web", WWW 2009).
"""

from dataclasses import dataclass

import numpy as np

from corpus.choices import PROFILES
from corpus.extraction.blocks import HEADINGS, Line, Page
from corpus.extraction.charset import decode
from corpus.extraction.normalize import normalize_line
from corpus.extraction.prose import Trees, half_words, scores

# Fitted on half of the sites and kept: see tools/fit_extraction.py.
TEXT = -800  # a line that scores more is text (thousandths of log odds)
ASTRAY = 700  # so much more must a line score that stands away from most of the text:
APART = 6  # lines between it and the rest
# Where nearly nothing scores so: a line near the best one, if that is no worse than this.
RELUCTANT = (
    1000,
    -3000,
)
NEARLY_NOTHING = 0.2  # of the signs of a page's prose
PROSE_CHARS = 60  # in a line of prose
TITLE_ABOVE = 4  # lines; a heading so near above the text is its title

# Scores of plain lines, in words of prose. Chosen by hand on real pages in five languages.
PROSE_CAP = 60  # a long paragraph cannot outweigh everything around it
SHORT, NOT_PROSE, MENU = -6, -3, -12
SHORT_LINE, LONG_LINE = 10, 18  # words
SENTENCE_END = tuple(".!?…。！？\"”»'’:;)")


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
    if profile == "fast":
        return main_text(Page(decode(data, charset)))
    if profile == "faithful":
        from corpus.extraction.faithful import faithful_text

        return MainText(faithful_text(decode(data, charset)), None)
    raise ValueError(f"There is no extraction profile '{profile}'. The profiles are: {', '.join(PROFILES)}.")


def main_text(page: Page, trees: Trees | None = None) -> MainText:
    """The lines of a page that are its text, its title before them; judged by other trees than ours, if given."""
    chosen = _chosen(page.lines, *scores(page, trees))
    if not chosen:
        return MainText("", None)
    text = [page.lines[at].text for at in chosen]
    title = _title(page.lines, chosen[0])
    if title and title != text[0]:
        text.insert(0, title)
    return MainText("\n".join(text), title)


def _chosen(lines: list[Line], maybe: list[int], score: np.ndarray) -> list[int]:
    """The numbers of the lines that are text."""
    scored = list(zip(maybe, score.tolist(), strict=True))
    found = [(at, s) for at, s in scored if s > TEXT]
    prose = [(at, s) for at, s in scored if len(lines[at].text) > PROSE_CHARS]
    if prose and _chars(lines, found) < NEARLY_NOTHING * _chars(lines, prose):
        least = min(TEXT, max(max(s for _, s in prose) - RELUCTANT[0], RELUCTANT[1]))
        found = [(at, s) for at, s in scored if s > least]
    if not found:
        return []
    groups = [[found[0]]]
    for line, before in zip(found[1:], found, strict=False):
        if line[0] - before[0] > APART:
            groups.append([])
        groups[-1].append(line)
    main = max(
        groups, key=lambda group: sum(len(lines[at].text) * min(max(s - TEXT, 100), 3000) for at, s in group)
    )
    return [at for group in groups for at, s in group if group is main or s > TEXT + ASTRAY]


def _chars(lines: list[Line], some: list[tuple[int, int]]) -> int:
    return sum(len(lines[at].text) for at, _ in some)


def _title(lines: list[Line], start: int) -> str | None:
    """The heading that the text begins with; else the last h1 above it; else another heading right above it."""
    if lines[start].kind in HEADINGS:
        return lines[start].text
    for line in reversed(lines[:start]):
        if line.kind == "h1":
            return line.text
    near = [line.text for line in lines[max(0, start - TITLE_ABOVE) : start] if line.kind in ("h2", "h3")]
    return near[-1] if near else None


def plain_text(data: bytes, charset: str | None = None) -> MainText:
    """Of text that was extracted elsewhere (WET), the run of lines with the highest sum of scores; no title."""
    lines = [line for line in map(normalize_line, decode(data, charset).split("\n")) if line]
    start, stop = _best_run([_plain_score(line) for line in lines])
    return MainText("\n".join(lines[start:stop]), None)


def _plain_score(text: str) -> float:
    """How much a line looks like running text: words of prose, or a penalty."""
    if "|" in text or "©" in text:
        return MENU
    words, ends = half_words(text) / 2, text.endswith(SENTENCE_END)
    if words < SHORT_LINE:
        return SHORT + 4 * ends
    if ends:
        return min(PROSE_CAP, words)
    return min(PROSE_CAP, 0.5 * words) if words >= LONG_LINE else NOT_PROSE


def _best_run(values: list[float]) -> tuple[int, int]:
    """[start, stop) of the run with the highest sum; (0, 0) where no value is above zero."""
    best, span = 0.0, (0, 0)
    total, start = 0.0, 0
    for at, value in enumerate(values):
        if total <= 0:
            total, start = 0.0, at
        total += value
        if total > best:
            best, span = total, (start, at + 1)
    return span
