"""The main text of a page, by one of two profiles.

fast      our own: Lexbor's parse, a walk over its tree (blocks.py), and small fitted trees that score which lines are
          text (prose.py). The page's heading comes first. Quality and speed: docs/extraction.md.
faithful  trafilatura, called as FineWeb's pipeline calls it (faithful.py).

Text that was extracted elsewhere (WET) has no markup to judge by: of its lines the best run of prose is taken (maximum
subsequence segmentation, Pasternack & Roth, "Extracting article text from the web", WWW 2009).
"""

from dataclasses import dataclass

import numpy as np

from core.errors import ConfigError
from corpus.choices import PROFILES
from corpus.extraction.blocks import HEADINGS, Line, Page
from corpus.extraction.charset import decode
from corpus.extraction.normalize import normalize_line
from corpus.extraction.prose import Trees, half_words, scores

# Scores are thousandths of log odds. Chosen on half of the sites with the trees: see tools/fit_extraction.py.
TEXT = -800  # a line with a higher score is text
APART = 6  # lines; of groups of text lines that are farther apart than this, one is the main group
APART_MARGIN = 700  # how far above TEXT a line outside the main group must score
# Where almost no line scores above TEXT: lines within the margin of the best one, but none below the minimum.
RELAXED_MARGIN, RELAXED_MINIMUM = 1000, -3000
ALMOST_NONE = 0.2  # share of the characters of a page's long lines
PROSE_CHARS = 60  # a line with more is a long line
TITLE_ABOVE = 4  # lines; a heading at most so far above the text is its title

# Scores of lines without markup, in words of prose. Chosen by hand on real pages in five languages.
PROSE_CAP = 60  # so that one long paragraph cannot outweigh everything around it
SHORT, NOT_PROSE, MENU = -6, -3, -12
SHORT_LINE, LONG_LINE = 10, 18  # words
SENTENCE_END = tuple(".!?…。！？\"”»'’:;)")


@dataclass(frozen=True, slots=True)
class MainText:
    """The text of a page. `title` is its first line if the page has a heading of its own, else None."""

    text: str
    title: str | None


def extract_text(html: bytes, url: str | None = None, profile: str = "fast") -> str:
    """The main text of an HTML page, its heading first, one block a line; '' where there is none.

    `html` is the page as served; `url` is accepted for callers that have it and changes nothing; `profile` is one of
    PROFILES. Raises ConfigError for another.
    """
    return extract_page(html, profile=profile).text


def extract_page(data: bytes, charset: str | None = None, profile: str = "fast") -> MainText:
    """As extract_text, but with the charset of the HTTP header if there was one, and the title named."""
    if profile == "fast":
        return main_text(Page(decode(data, charset)))
    if profile == "faithful":
        from corpus.extraction.faithful import faithful_text

        return MainText(faithful_text(decode(data, charset)), None)
    raise ConfigError(f"There is no extraction profile '{profile}'. The profiles are: {', '.join(PROFILES)}.")


def main_text(page: Page, trees: Trees | None = None) -> MainText:
    """The lines of a page that are its text, its title before them. `trees`: to score lines with, instead of ours."""
    chosen = _choose(page.lines, *scores(page, trees))
    if not chosen:
        return MainText("", None)
    text = [page.lines[at].text for at in chosen]
    title = _title(page.lines, chosen[0])
    if title and title != text[0]:
        text.insert(0, title)
    return MainText("\n".join(text), title)


def _choose(lines: list[Line], candidates: list[int], line_scores: np.ndarray) -> list[int]:
    """The indices of the lines that are text."""
    scored = list(zip(candidates, line_scores.tolist(), strict=True))
    found = [(at, score) for at, score in scored if score > TEXT]
    prose = [(at, score) for at, score in scored if len(lines[at].text) > PROSE_CHARS]
    if prose and _chars(lines, found) < ALMOST_NONE * _chars(lines, prose):
        best = max(score for _, score in prose)
        threshold = min(TEXT, max(best - RELAXED_MARGIN, RELAXED_MINIMUM))
        found = [(at, score) for at, score in scored if score > threshold]
    if not found:
        return []
    groups = [[found[0]]]
    for line, before in zip(found[1:], found, strict=False):
        if line[0] - before[0] > APART:
            groups.append([])
        groups[-1].append(line)
    main = max(
        groups,
        key=lambda group: sum(len(lines[at].text) * min(max(score - TEXT, 100), 3000) for at, score in group),
    )
    return [at for group in groups for at, score in group if group is main or score > TEXT + APART_MARGIN]


def _chars(lines: list[Line], some: list[tuple[int, int]]) -> int:
    return sum(len(lines[at].text) for at, _ in some)


def _title(lines: list[Line], start: int) -> str | None:
    """The heading that the text begins with; else the last h1 above it; else an h2 or h3 just above it."""
    if lines[start].kind in HEADINGS:
        return lines[start].text
    for line in reversed(lines[:start]):
        if line.kind == "h1":
            return line.text
    near = [line.text for line in lines[max(0, start - TITLE_ABOVE) : start] if line.kind in ("h2", "h3")]
    return near[-1] if near else None


def plain_text(data: bytes, charset: str | None = None) -> MainText:
    """The run of lines with the highest sum of scores, of text that was extracted elsewhere (WET); no title."""
    lines = [line for line in map(normalize_line, decode(data, charset).split("\n")) if line]
    start, stop = _best_run([_plain_score(line) for line in lines])
    return MainText("\n".join(lines[start:stop]), None)


def _plain_score(text: str) -> float:
    """How much a line looks like prose: its words, or a penalty."""
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
