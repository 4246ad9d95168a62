"""C4's pass over the lines: drop those that are not prose, cut citation marks, count what its page rules ask for.

Source: Raffel et al. 2020, arXiv 1910.10683, section 2.2, in the order of datatrove's C4QualityFilter. The settings
c4_line_* in quality.py say which lines go. A title line may be short and unpunctuated: C4 had no titles to lose.
"""

import re

from corpus.measures import Page
from corpus.words import HAS_CJK, Words

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
TERMINAL = (".", "?", "!", '"', "。", "！", "？")  # C4's, and the Chinese ones; datatrove takes ' too
POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
NAMES = ("lorem ipsum", "javascript", "{", *POLICY)


def clean_lines(page: Page) -> Page:
    """The page as the pass leaves it, with `lorem_ipsum` and `curly` counted in lines."""
    words, settings = page.words, page.settings
    after = Page(words, settings, page.known_stop_words, page.known_bad_words)
    lower = words.text.lower()
    troubled = any(name in lower for name in NAMES)
    cites = bool(settings["c4_line_citations"]) and "[" in lower
    lines, kept = words.lines, []
    for number, line in enumerate(lines):
        title = words.title and number == 0
        stays = not _too_long(line, settings["c4_line_max_word_length"])
        if stays and not title:
            stays = _is_prose(page, number, line)
        kept.append(stays and (not troubled or _count_trouble(after, line.lower(), title)))
    if cites and any(CITATION.search(line) for line, stays in zip(lines, kept, strict=True) if stays):
        cut = [_without_citations(line) for line, stays in zip(lines, kept, strict=True) if stays]
        after.words = Words.of_lines(cut, words.title and bool(cut))
    elif not all(kept):
        after.words = words.only(kept)
    return after


def _too_long(line: str, longest: float | None) -> bool:
    return bool(longest) and len(line) > longest and any(len(word) > longest for word in line.split())


def _is_prose(page: Page, number: int, line: str) -> bool:
    """Whether a line has words enough and, where that is asked, ends as a sentence does."""
    fewest = int(page.settings["c4_line_min_words"] or 0)
    if fewest and len(line.split(None, fewest - 1)) < fewest:  # one piece more than needed is not split
        if line.isascii() or not HAS_CJK.search(line) or page.words.per_line[number] < fewest:
            return False
    elif fewest and not line.isascii() and HAS_CJK.search(line) and page.words.per_line[number] < fewest:
        return False
    if not page.settings["c4_line_terminal_punctuation"]:
        return True
    end = _without_citations(line) if page.settings["c4_line_citations"] else line.rstrip()
    return end.endswith(TERMINAL) and not end.endswith("...")


def _without_citations(line: str) -> str:
    return CITATION.sub("", line).strip() if CITATION.search(line) else line


def _count_trouble(after: Page, lower: str, title: bool) -> bool:
    """Count lorem ipsum and curly brackets; whether the line stays."""
    settings = after.settings
    after.lorem_ipsum += "lorem ipsum" in lower
    if settings["c4_line_javascript"] and "javascript" in lower and not title:
        return False
    after.curly += "{" in lower
    return not (settings["c4_line_policy"] and any(phrase in lower for phrase in POLICY))
