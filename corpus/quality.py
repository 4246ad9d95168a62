"""Is a text worth learning from? The published heuristics of Gopher, C4 and FineWeb, each a named row of a table.

A rule measures one number and compares it with one threshold; the first rule that fails decides, in the order in
which FineWeb's pipeline asks. C4 also edits: it drops lines, and the rules after it see what is left.
Sources: Gopher = Rae et al. 2021, arXiv 2112.11446, A.1.1 and table A1. C4 = Raffel et al. 2020, arXiv 1910.10683,
section 2.2. FineWeb = Penedo et al. 2024, arXiv 2406.17557, section 3.5. Where huggingface/datatrove, the code
that made FineWeb, differs from the paper, the rule's note says so; it is what runs here, for comparable corpora.
A word is defined in words.py; datatrove takes spaCy's, which splits "don't" in two and keeps "U.S." whole.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from corpus.words import HAS_CJK, Words

STOP_WORDS = {"en": frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])}  # Gopher, A.1.1
ELLIPSES = ("...", "…")
BULLETS = ("•", "-")
# Unicode sentence ends of the scripts a web crawl meets; datatrove lists 150, historic scripts included.
SENTENCE_END = tuple(".!?…。．！？｡﹒﹖﹗؟۔।॥။።፧։܀᙮‼⁇⁈⁉‽⸮។៕")
SENTENCE = re.compile(r"(?<!\b[A-Z])[.!?…]+[\"'”’»)\]]*\s+(?=\S)|[。！？]+[”’」』）]*(?=\S)")
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)  # C4's published code, c4_utils.py
GOPHER, GOPHER_TABLE = "Gopher, A.1.1", "Gopher, table A1"
C4, FINEWEB = "C4, section 2.2", "FineWeb, section 3.5"
NO_SPACES = frozenset(
    {"zh", "ja", "yue", "wuu", "th", "lo", "km", "my"}
)  # words are not told apart by spaces


@dataclass(frozen=True, slots=True)
class Rule:
    """One heuristic: `measure` a text, fail it above `limit` (side 'max') or below it (side 'min')."""

    name: str
    side: str
    limit: float
    measure: Callable[["Page"], float | None]  # None: the rule does not apply to this text
    source: str
    note: str = ""

    def fails(self, value: float, limit: float) -> bool:
        """Whether a measured value is beyond the limit."""
        return value > limit if self.side == "max" else value < limit


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a text was dropped."""

    rule: str
    value: float
    threshold: float


@dataclass(slots=True)
class Page:
    """What a rule may look at. `sentences`, `lorem_ipsum` and `curly` are filled by C4's pass over the lines."""

    words: Words
    language: str
    sentences: int = 0
    lorem_ipsum: int = 0
    curly: int = 0


def _repeated(items: list[str]) -> tuple[int, int]:
    """(number, characters) of the items that stood earlier in the list."""
    seen: set[str] = set()
    number = characters = 0
    for item in items:
        if item in seen:
            number += 1
            characters += len(item)
        else:
            seen.add(item)
    return number, characters


def _lines(page: Page) -> list[str]:
    return [line for line in page.words.lines if line]


def dup_line_fraction(page: Page) -> float:
    """Lines that stood earlier, of all lines."""
    lines = _lines(page)
    return _repeated(lines)[0] / max(1, len(lines))


def dup_line_char_fraction(page: Page) -> float:
    """Characters in lines that stood earlier, of all characters."""
    return _repeated(_lines(page))[1] / max(1, len(page.words.text))


def _paragraphs(page: Page) -> list[str]:
    return re.split(r"\n{2,}", page.words.text.strip())


def dup_paragraph_fraction(page: Page) -> float:
    """Paragraphs (parted by empty lines) that stood earlier, of all paragraphs."""
    paragraphs = _paragraphs(page)
    return _repeated(paragraphs)[0] / len(paragraphs)


def dup_paragraph_char_fraction(page: Page) -> float:
    """Characters in paragraphs that stood earlier, of all characters."""
    return _repeated(_paragraphs(page))[1] / max(1, len(page.words.text))


def top_ngram_fraction(n: int) -> Callable[[Page], float]:
    """Characters in all occurrences of the commonest run of n tokens, of all characters."""

    def measure(page: Page) -> float:
        words = page.words
        hashes = words.ngram_hashes(n)
        if not len(hashes):
            return 0.0
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        most = counts.max()
        start = int(first[counts == most].min())
        characters = int(words.lengths[start : start + n].sum()) + n - 1
        return characters * int(most) / len(words.text)

    return measure


def dup_ngram_fraction(n: int) -> Callable[[Page], float]:
    """Characters in runs of n tokens that stood earlier, each character counted once, of all characters."""

    def measure(page: Page) -> float:
        words = page.words
        hashes = words.ngram_hashes(n).tolist()
        if len(set(hashes)) == len(hashes):
            return 0.0
        ends = np.concatenate(([0], np.cumsum(words.lengths)))
        widths = (ends[n:] - ends[:-n]).tolist()
        seen: set[int] = set()
        at = characters = 0
        while at < len(hashes):
            if hashes[at] in seen:
                characters += widths[at]
                at += n
            else:
                seen.add(hashes[at])
                at += 1
        return characters / len(words.text)

    return measure


def n_words(page: Page) -> float:
    """Words, signs not counted."""
    return page.words.n_words


def mean_word_length(page: Page) -> float | None:
    """Characters a word; not for languages written without spaces."""
    if page.language in NO_SPACES or not page.words.n_words:
        return None
    return float(page.words.lengths[page.words.is_word].mean())


def hash_ratio(page: Page) -> float:
    """Hash signs a token."""
    return page.words.text.count("#") / max(1, len(page.words.tokens))


def ellipsis_ratio(page: Page) -> float:
    """Ellipses a token."""
    return sum(page.words.text.count(e) for e in ELLIPSES) / max(1, len(page.words.tokens))


def bullet_line_fraction(page: Page) -> float:
    """Lines that start with a bullet, of all lines."""
    lines = page.words.lines
    return sum(line.lstrip().startswith(BULLETS) for line in lines) / max(1, len(lines))


def ellipsis_line_fraction(page: Page) -> float:
    """Lines that end with an ellipsis, of all lines."""
    lines = page.words.lines
    return sum(line.rstrip().endswith(ELLIPSES) for line in lines) / max(1, len(lines))


def letter_fraction(page: Page) -> float:
    """Tokens with a letter, of all tokens."""
    return float(page.words.has_letter.mean()) if page.words.tokens else 0.0


def stop_words(page: Page) -> float | None:
    """How many of the language's stop words occur; not for languages without a list."""
    known = STOP_WORDS.get(page.language)
    return None if known is None else len(known & page.words.distinct)


def line_end_fraction(page: Page) -> float:
    """Lines that end with a sentence's end, of the lines that are not empty."""
    lines = [line for line in page.words.lines if line.strip()]
    return sum(line.endswith(SENTENCE_END) for line in lines) / len(lines) if lines else 0.0


def short_line_fraction(page: Page) -> float:
    """Lines of at most 30 characters (10 in Chinese or Japanese), of the lines that are not empty."""
    lines = [line for line in page.words.lines if line.strip()]
    short = 10 if page.language in NO_SPACES else 30
    return sum(len(line) <= short for line in lines) / len(lines) if lines else 1.0


def fineweb_dup_line_char_fraction(page: Page) -> float:
    """Characters in lines that stood earlier, of all characters but line ends."""
    lines = [line for line in page.words.lines if line.strip()]
    return _repeated(lines)[1] / max(1, sum(map(len, lines)))


def line_break_ratio(page: Page) -> float:
    """Line ends a token."""
    return page.words.text.count("\n") / max(1, len(page.words.tokens))


REPETITION_NOTE = "datatrove divides by all characters, spaces included, and so does this"
BEFORE_C4 = (
    Rule("gopher_dup_paragraphs", "max", 0.30, dup_paragraph_fraction, GOPHER_TABLE),
    Rule("gopher_dup_paragraph_chars", "max", 0.20, dup_paragraph_char_fraction, GOPHER_TABLE),
    Rule("gopher_dup_lines", "max", 0.30, dup_line_fraction, GOPHER_TABLE),
    Rule("gopher_dup_line_chars", "max", 0.20, dup_line_char_fraction, GOPHER_TABLE),
    *(
        Rule(f"gopher_top_{n}_gram", "max", limit, top_ngram_fraction(n), GOPHER_TABLE, REPETITION_NOTE)
        for n, limit in ((2, 0.20), (3, 0.18), (4, 0.16))
    ),
    *(
        Rule(f"gopher_dup_{n}_grams", "max", limit, dup_ngram_fraction(n), GOPHER_TABLE, REPETITION_NOTE)
        for n, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    ),
    Rule("gopher_min_words", "min", 50, n_words, GOPHER),
    Rule("gopher_max_words", "max", 100_000, n_words, GOPHER),
    Rule("gopher_min_word_length", "min", 3, mean_word_length, GOPHER),
    Rule("gopher_max_word_length", "max", 10, mean_word_length, GOPHER),
    Rule("gopher_hashes", "max", 0.1, hash_ratio, GOPHER),
    Rule("gopher_ellipses", "max", 0.1, ellipsis_ratio, GOPHER),
    Rule("gopher_bullet_lines", "max", 0.9, bullet_line_fraction, GOPHER),
    Rule("gopher_ellipsis_lines", "max", 0.3, ellipsis_line_fraction, GOPHER),
    Rule(
        "gopher_letters",
        "min",
        0.8,
        letter_fraction,
        GOPHER,
        "the paper speaks of words; datatrove counts signs as words too, which is stricter",
    ),
    Rule(
        "gopher_stop_words",
        "min",
        2,
        stop_words,
        GOPHER,
        "case-sensitive as in datatrove; English words only",
    ),
)
AFTER_C4 = (
    Rule("c4_lorem_ipsum", "max", 0, lambda page: page.lorem_ipsum, C4),
    Rule("c4_curly_bracket", "max", 0, lambda page: page.curly, C4, "asked of the lines that are kept"),
    Rule(
        "c4_min_sentences",
        "min",
        5,
        lambda page: page.sentences,
        C4,
        "5 in the paper's first version and in datatrove; 3 in its last version and in C4's published code",
    ),
    Rule("fineweb_line_ends", "min", 0.12, line_end_fraction, FINEWEB),
    Rule(
        "fineweb_short_lines",
        "max",
        0.67,
        short_line_fraction,
        FINEWEB,
        "the paper says shorter than 30 characters, datatrove takes 30 as short too",
    ),
    Rule(
        "fineweb_dup_line_chars",
        "max",
        0.01,
        fineweb_dup_line_char_fraction,
        FINEWEB,
        "0.1 in the paper's text, 0.01 in datatrove",
    ),
    Rule("fineweb_line_breaks", "max", 0.3, line_break_ratio, FINEWEB, "datatrove only; not in the paper"),
)
RULES = BEFORE_C4 + AFTER_C4
# Thresholds of C4's pass over the lines; they drop lines, never pages.
LINE_LIMITS = {
    "c4_line_min_words": 3,  # paper's first version and datatrove; 5 in its last version and in C4's published code
    "c4_line_max_word_length": 1000,  # C4's published code, not in the paper
}
DEFAULT_THRESHOLDS: dict[str, float] = {rule.name: rule.limit for rule in RULES} | LINE_LIMITS


def judge(words: Words, language: str, thresholds: Mapping[str, float | None]) -> Verdict | Words:
    """The first rule that a text fails, or the text as C4's pass over its lines left it.

    `thresholds` replace DEFAULT_THRESHOLDS by name; None switches a rule off.
    """
    limits = {**DEFAULT_THRESHOLDS, **thresholds}
    failed = _first_failure(BEFORE_C4, Page(words, language), limits)
    if failed:
        return failed
    page = clean_lines(words, language, limits)
    return _first_failure(AFTER_C4, page, limits) or page.words


def _first_failure(rules: tuple[Rule, ...], page: Page, limits: Mapping[str, float | None]) -> Verdict | None:
    for rule in rules:
        limit = limits[rule.name]
        if limit is None:
            continue
        value = rule.measure(page)
        if value is not None and rule.fails(value, limit):
            return Verdict(rule.name, round(float(value), 6), float(limit))
    return None


def clean_lines(words: Words, language: str, limits: Mapping[str, float | None]) -> Page:
    """C4's pass: drop lines that are not prose, and count what its page rules ask for.

    As in FineWeb, lines need no terminal punctuation (C4 asked for it). A title line may be short: C4 had no
    titles to lose.
    """
    min_words = limits["c4_line_min_words"] or 0
    longest = limits["c4_line_max_word_length"] or float("inf")
    page = Page(words, language)
    lines, tokens = [], []
    for number, line in enumerate(words.lines):
        title = words.title and number == 0
        lower = line.lower()
        found = words.tokens_by_line[number]
        if len(line) > longest and any(len(word) > longest for word in line.split()):
            continue
        if not title and len(found if HAS_CJK.search(line) else line.split()) < min_words:
            continue
        page.lorem_ipsum += "lorem ipsum" in lower
        if "javascript" in lower and not title:
            continue
        page.curly += "{" in line
        if any(phrase in lower for phrase in POLICY):
            continue
        if "[" in line and CITATION.search(line):
            line = CITATION.sub("", line).strip()
            found = Words.of(line).tokens
        page.sentences += 1 + len(SENTENCE.findall(line))
        lines.append(line)
        tokens.append(found)
    page.words = Words(lines, words.title and bool(lines), tokens)
    return page
