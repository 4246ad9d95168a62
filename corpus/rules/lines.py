"""C4's pass over the lines: drop those that are not prose, remove citation marks, count what its page rules need.

Source: Raffel et al. 2020, arXiv 1910.10683, section 2.2, in the order of datatrove's C4QualityFilter. The settings
c4_line_* in thresholds.py say which lines are dropped. A title line may be short and unpunctuated: C4's texts had no
titles.
"""

import re
from collections.abc import Mapping

from corpus.rules.measures import Page
from corpus.words import HAS_CJK, Words

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
TERMINAL = (".", "?", "!", '"', "。", "！", "？")  # C4's, and the Chinese ones; datatrove accepts ' too
POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
# Only where a token contains one of these are the lines searched for what the pass counts and drops.
TROUBLE = re.compile("lorem|javascript|[{]|terms|policy|cookies", re.IGNORECASE)


def clean_lines(page: Page) -> Page:
    """The page as the pass leaves it, with `lorem_ipsum` and `curly` counted in lines."""
    words, settings, lines = page.words, page.settings, page.words.lines
    after = Page(words, settings, page.known_stop_words, page.known_bad_words)
    troubled, has_cjk = words.matches(TROUBLE), words.matches(HAS_CJK)
    cites = settings["c4_line_citations"] and "[" in words.text
    longest, punctuated = settings["c4_line_max_word_length"], settings["c4_line_terminal_punctuation"]
    fewest = int(settings["c4_line_min_words"] or 0)
    kept = []
    for number, line in enumerate(lines):
        title = words.title and number == 0
        stays = not longest or len(line) <= longest or not _too_long(line, longest)
        if stays and not title:
            # split no further than needed; a Chinese line is not split at spaces
            if has_cjk and HAS_CJK.search(line):
                stays = words.per_line[number] >= fewest
            else:
                stays = not fewest or len(line.split(None, fewest - 1)) >= fewest
            stays = stays and (not punctuated or _is_sentence(line, settings))
        if stays and troubled:
            stays = _count_trouble(after, line.lower(), title)
        kept.append(stays)
    if cites and any(stays and CITATION.search(line) for line, stays in zip(lines, kept, strict=True)):
        cut = [_without_citations(line) for line, stays in zip(lines, kept, strict=True) if stays]
        after.words = Words.of_lines(cut, words.title and bool(cut))
    elif not all(kept):
        after.words = words.only(kept)
    return after


def _too_long(line: str, longest: float) -> bool:
    return any(len(word) > longest for word in line.split())


def _is_sentence(line: str, settings: Mapping[str, float | None]) -> bool:
    """Whether a line ends with terminal punctuation."""
    end = _without_citations(line) if settings["c4_line_citations"] else line.rstrip()
    return end.endswith(TERMINAL) and not end.endswith("...")


def _without_citations(line: str) -> str:
    return CITATION.sub("", line).strip() if CITATION.search(line) else line


def _count_trouble(after: Page, lower: str, title: bool) -> bool:
    """Count lorem ipsum and curly brackets; return whether the line is kept."""
    settings = after.settings
    after.lorem_ipsum += "lorem ipsum" in lower
    if settings["c4_line_javascript"] and "javascript" in lower and not title:
        return False
    after.curly += "{" in lower
    return not (settings["c4_line_policy"] and any(phrase in lower for phrase in POLICY))
