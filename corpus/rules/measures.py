"""What the quality rules measure: each function computes one number of a page. The table of rules is in quality.py.

Most pages pass most rules, so an expensive measure has a cheap bound beside it (`*_at_most`, `*_at_least`): a page
whose bound passes the rule needs no exact count. docs/rules.md and the report describe each rule by the docstring of
its measure.
"""

import re
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np

from corpus.words import Words

ELLIPSES = ("...", "…")
BULLETS = ("•", "-")
# Unicode sentence ends of the scripts that occur in web crawls; datatrove lists 150, including historic scripts.
SENTENCE_END = tuple(".!?…。．！？｡﹒﹖﹗؟۔।॥။።፧։܀᙮‼⁇⁈⁉‽⸮។៕")
# A sentence's end within a line.
SENTENCE = re.compile(
    r"(?<!\b[A-Z])[.!?…]+[\"'”’»)\]]*[^\S\n]+(?=\S)|[。！？]+[”’」』）]*(?=\S)",
)
FEW_REPEATS = 0.09  # below every published limit, so that a bound is exact enough
LONG_LINE = 200  # characters; mC4, arXiv 2010.11934, section 3.1


class Page:
    """A text, with what the rules need to judge it.

    `settings`: thresholds by name. `lorem_ipsum` and `curly` are counted by C4's pass over the lines.
    """

    def __init__(
        self,
        words: Words,
        settings: Mapping[str, float | None],
        stop_words: frozenset[str] | None = None,
        bad_words: re.Pattern[str] | None = None,
    ):
        self.words = words
        self.settings = settings
        self.known_stop_words = stop_words
        self.known_bad_words = bad_words
        self.lorem_ipsum = 0
        self.curly = 0

    @cached_property
    def n_tokens(self) -> int:
        """Tokens, at least 1: Gopher's ratios are per word, and datatrove counts signs as words."""
        count = len(self.words.ids) if self.settings["gopher_signs_are_words"] else self.words.n_words
        return max(1, count)

    @cached_property
    def prose(self) -> list[str]:
        """The non-empty lines."""
        return [line for line in self.words.lines if line and not line.isspace()]

    @cached_property
    def paragraphs(self) -> list[str]:
        """The blocks separated by empty lines."""
        text = self.words.text
        return re.split(r"\n{2,}", text.strip()) if "\n\n" in text else [text]

    @cached_property
    def n_ellipses(self) -> int:
        """Ellipses, in either spelling."""
        return sum(map(self.words.text.count, ELLIPSES))

    @cached_property
    def repeated_5_grams_cover(self) -> float:
        """A bound on the share of the text in repeated 5-grams, and so in longer repeated n-grams."""
        words, hashes = self.words, self.words.ngram_hashes(5)
        in_order = np.sort(hashes)
        again = int(np.count_nonzero(in_order[1:] == in_order[:-1]))
        if not again:
            return 0.0
        first_too = bool(self.settings["gopher_first_of_repeated"])
        widest = int((words.ends[5:] - words.ends[:-5]).max())
        bound = (again + again * first_too) * widest / len(words.text)
        return bound if bound < FEW_REPEATS else _cover(words, hashes, 5, first_too)

    @cached_property
    def most_frequent_2_gram(self) -> int:
        """Occurrences of the most frequent 2-gram; no longer n-gram can occur more often."""
        hashes = np.sort(self.words.ngram_hashes(2))
        starts = np.concatenate(([True], hashes[1:] != hashes[:-1], [True])).nonzero()[0]
        return int(np.diff(starts).max()) if len(hashes) else 0


def _cover(words: Words, hashes: np.ndarray, n: int, first_too: bool) -> float:
    """Share of the characters in n-grams that occur more than once, each character counted once."""
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    found = order[1:][same]
    if first_too:
        found = np.concatenate((found, order[:-1][same]))
    covered = np.zeros(len(words.ids), dtype=bool)
    for shift in range(n):
        covered[found + shift] = True
    return int(words.lengths[covered].sum()) / len(words.text)


def _repeated(items: list[str]) -> tuple[int, int]:
    """(number, characters) of the items that repeat an earlier one."""
    if len(set(items)) == len(items):
        return 0, 0
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
    """Share of lines that repeat an earlier line."""
    lines = _lines(page)
    return _repeated(lines)[0] / max(1, len(lines))


def dup_line_char_fraction(page: Page) -> float:
    """Share of characters in lines that repeat an earlier line."""
    return _repeated(_lines(page))[1] / max(1, len(page.words.text))


def dup_paragraph_fraction(page: Page) -> float:
    """Share of paragraphs (separated by empty lines) that repeat an earlier one."""
    return _repeated(page.paragraphs)[0] / len(page.paragraphs)


def dup_paragraph_char_fraction(page: Page) -> float:
    """Share of characters in paragraphs that repeat an earlier one."""
    return _repeated(page.paragraphs)[1] / max(1, len(page.words.text))


def top_ngram_fraction(n: int) -> Callable[[Page], float]:
    """Share of characters in all occurrences of the most frequent n-gram."""

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

    measure.__doc__ = f"Share of characters in all occurrences of the most frequent {n}-gram."
    return measure


def top_ngram_at_most(n: int) -> Callable[[Page], float]:
    """A bound: as if the longest n-gram were as frequent as the most frequent 2-gram."""

    def measure(page: Page) -> float:
        ends = page.words.ends
        if len(ends) <= n:
            return 0.0
        widest = int((ends[n:] - ends[:-n]).max()) + n - 1
        return widest * page.most_frequent_2_gram / len(page.words.text)

    return measure


def dup_ngram_fraction(n: int) -> Callable[[Page], float]:
    """Share of characters in n-grams that repeat an earlier one, each character counted once."""

    def measure(page: Page) -> float:
        words = page.words
        if page.repeated_5_grams_cover == 0:
            return 0.0
        if page.settings["gopher_first_of_repeated"]:
            return _cover(words, words.ngram_hashes(n), n, first_too=True)
        hashes, ends = words.ngram_hashes(n).tolist(), words.ends
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

    measure.__doc__ = (
        f"Share of characters in {n}-grams that repeat an earlier one, each character counted once."
    )
    return measure


def dup_ngram_at_most(page: Page) -> float:
    """A bound: the share of characters in repeated 5-grams, since longer repeated n-grams consist of those."""
    return page.repeated_5_grams_cover


def n_words(page: Page) -> float:
    """Words, signs not counted."""
    return page.words.n_words


def mean_word_length(page: Page) -> float | None:
    """Mean word length in characters."""
    words = page.words
    return float(words.lengths[words.is_word].sum()) / words.n_words if words.n_words else None


def hash_ratio(page: Page) -> float:
    """Hash signs per token."""
    return page.words.text.count("#") / page.n_tokens


def ellipsis_ratio(page: Page) -> float:
    """Ellipses per token."""
    return page.n_ellipses / page.n_tokens


def bullet_line_fraction(page: Page) -> float:
    """Share of lines that start with a bullet."""
    lines = page.words.lines
    return sum([line.lstrip().startswith(BULLETS) for line in lines]) / max(1, len(lines))


def ellipsis_line_fraction(page: Page) -> float:
    """Share of lines that end with an ellipsis."""
    if not page.n_ellipses:
        return 0.0
    lines = page.words.lines
    return sum([line.rstrip().endswith(ELLIPSES) for line in lines]) / max(1, len(lines))


def letter_fraction(page: Page) -> float:
    """Share of tokens with a letter."""
    return float(np.count_nonzero(page.words.has_letter)) / page.n_tokens


def stop_words(page: Page) -> float | None:
    """How many of the language's stop words occur; does not apply to languages without a list."""
    known = page.known_stop_words
    return None if known is None else float(page.words.count_of(known))


def stop_words_at_least(page: Page) -> float:
    """A bound: how many of the language's stop words occur among the first hundred tokens."""
    known = page.known_stop_words
    return page.words.count_of(known, among=100) if known else float("inf")


def lorem_ipsum(page: Page) -> float:
    """Lines with 'lorem ipsum'."""
    return page.lorem_ipsum


def curly(page: Page) -> float:
    """Lines with a curly bracket."""
    return page.curly


def bad_words(page: Page) -> float | None:
    """Occurrences of the words of the setting `bad_words`; does not apply where that list is empty."""
    known = page.known_bad_words
    return None if known is None else float(len(known.findall(page.words.text.lower())))


def sentences(page: Page) -> float:
    """Sentences: the non-empty lines, plus the sentence ends within lines."""
    return len(page.prose) + len(SENTENCE.findall(page.words.text))


def sentences_at_least(page: Page) -> float:
    """A bound: every non-empty line is at least one sentence."""
    return len(page.prose)


def long_lines(page: Page) -> float:
    """Lines of at least 200 characters."""
    return sum([len(line) >= LONG_LINE for line in page.words.lines])


def line_end_fraction(page: Page) -> float:
    """Share of the non-empty lines that end with sentence-final punctuation."""
    return sum([line.endswith(SENTENCE_END) for line in page.prose]) / max(1, len(page.prose))


def short_line_fraction(page: Page) -> float:
    """Share of the non-empty lines that are short (at most fineweb_short_line_chars characters)."""
    short = page.settings["fineweb_short_line_chars"] or 0
    return sum([len(line) <= short for line in page.prose]) / len(page.prose) if page.prose else 1.0


def fineweb_dup_line_char_fraction(page: Page) -> float:
    """Share of characters, line breaks aside, in lines that repeat an earlier line."""
    return _repeated(page.prose)[1] / max(1, sum(map(len, page.prose)))


def line_break_ratio(page: Page) -> float:
    """Line breaks per token."""
    return page.words.text.count("\n") / max(1, len(page.words.ids))
