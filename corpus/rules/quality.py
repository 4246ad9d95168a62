"""Is a text worth learning from? The published heuristics of Gopher, C4 and FineWeb, each a named row of a table.

A rule measures one number (measures.py) and compares it with one threshold (thresholds.py, with sources); the first
rule that fails decides, in the order of FineWeb's pipeline. C4 also edits: it drops lines, and the rules after it see
what is left. Every threshold can be set on its own, for all languages or for one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

from corpus.rules import measures as m
from corpus.rules import thresholds
from corpus.rules.languages import COLUMNS, EVERYWHERE, OTHER_LANGUAGES, STOP_WORDS, THRESHOLDS
from corpus.rules.lines import clean_lines
from corpus.rules.measures import Page
from corpus.rules.thresholds import DEFAULT_THRESHOLDS, ROWS, SETTINGS, Threshold
from corpus.words import Words

if TYPE_CHECKING:
    from corpus.config import CleanConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Threshold):
    """One heuristic: its threshold, and how a text is measured.

    `measure` gives None where the rule does not apply to a text. `bound`: a cheap number that the measure is never
    worse than; where that passes, the measure is not computed.
    """

    measure: Callable[[Page], float | None]
    bound: Callable[[Page], float] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a text was dropped."""

    rule: str
    value: float
    threshold: float


MEASURES: dict[str, Callable[[Page], float | None]] = {
    "gopher_dup_paragraphs": m.dup_paragraph_fraction,
    "gopher_dup_paragraph_chars": m.dup_paragraph_char_fraction,
    "gopher_dup_lines": m.dup_line_fraction,
    "gopher_dup_line_chars": m.dup_line_char_fraction,
    **{f"gopher_top_{n}_gram": m.top_ngram_fraction(n) for n in (2, 3, 4)},
    **{f"gopher_dup_{n}_grams": m.dup_ngram_fraction(n) for n in range(5, 11)},
    "gopher_min_words": m.n_words,
    "gopher_max_words": m.n_words,
    "gopher_min_word_length": m.mean_word_length,
    "gopher_max_word_length": m.mean_word_length,
    "gopher_hashes": m.hash_ratio,
    "gopher_ellipses": m.ellipsis_ratio,
    "gopher_bullet_lines": m.bullet_line_fraction,
    "gopher_ellipsis_lines": m.ellipsis_line_fraction,
    "gopher_letters": m.letter_fraction,
    "gopher_stop_words": m.stop_words,
    "c4_lorem_ipsum": m.lorem_ipsum,
    "c4_curly_bracket": m.curly,
    "c4_bad_words": m.bad_words,
    "c4_min_sentences": m.sentences,
    "mc4_long_lines": m.long_lines,
    "fineweb_line_ends": m.line_end_fraction,
    "fineweb_short_lines": m.short_line_fraction,
    "fineweb_dup_line_chars": m.fineweb_dup_line_char_fraction,
    "fineweb_line_breaks": m.line_break_ratio,
}
BOUNDS: dict[str, Callable[[Page], float]] = {
    **{f"gopher_top_{n}_gram": m.top_ngram_at_most(n) for n in (2, 3, 4)},
    **dict.fromkeys((f"gopher_dup_{n}_grams" for n in range(5, 11)), m.dup_ngram_at_most),
    "gopher_stop_words": m.stop_words_at_least,
    "c4_min_sentences": m.sentences_at_least,
}


def _rules(rows: tuple[Threshold, ...]) -> tuple[Rule, ...]:
    names = [field.name for field in fields(Threshold)]
    return tuple(
        Rule(
            *(getattr(row, name) for name in names),
            measure=MEASURES[row.name],
            bound=BOUNDS.get(row.name),
        )
        for row in rows
    )


BEFORE_C4, AFTER_C4 = _rules(thresholds.BEFORE_C4), _rules(thresholds.AFTER_C4)
RULES = BEFORE_C4 + AFTER_C4
BY_NAME = {rule.name: rule for rule in RULES}
LINE_SETTINGS = tuple(setting.name for setting in SETTINGS if setting.name.startswith("c4_line_"))


@dataclass(frozen=True)
class Limits:
    """The limits for texts of one language: thresholds by name, the rules that are on, and word lists."""

    thresholds: Mapping[str, float | None]
    before_c4: tuple[tuple[Rule, float], ...]
    after_c4: tuple[tuple[Rule, float], ...]
    stop_words: frozenset[str] | None = None
    bad_words: re.Pattern[str] | None = None

    @property
    def reads_lines(self) -> bool:
        """Whether C4's pass over the lines has anything to edit or to count."""
        counted = (self.thresholds["c4_lorem_ipsum"], self.thresholds["c4_curly_bracket"])
        return any(self.thresholds[name] for name in LINE_SETTINGS) or counted != (None, None)


@lru_cache(maxsize=512)
def limits_for(
    language: str,
    flavour: str = "fineweb",
    thresholds: tuple[tuple[str, float | None], ...] = (),
    bad_words: tuple[str, ...] = (),
) -> Limits:
    """The limits of a language (ISO 639-1): the table's, then the flavour's, the language's and `thresholds`."""
    values = dict(DEFAULT_THRESHOLDS)
    row = THRESHOLDS.get(language)
    own = EVERYWHERE | dict(zip(COLUMNS, row, strict=True)) if row else OTHER_LANGUAGES
    if flavour == "papers":
        values |= {each.name: each.papers for each in ROWS if not isinstance(each.papers, str)}
        if language != "en":  # a rule that does not fit a language stays off
            values |= {name: None for name in COLUMNS if own.get(name, 0) is None}
    elif language != "en":
        values |= own
    values |= dict(thresholds)
    bad = "|".join(map(re.escape, sorted(bad_words)))
    return Limits(
        values,
        _switched_on(BEFORE_C4, values),
        _switched_on(AFTER_C4, values),
        frozenset(STOP_WORDS[language].split()) if language in STOP_WORDS else None,
        re.compile(rf"(?<!\w)(?:{bad})(?!\w)" if language not in ("zh", "ja", "th") else bad)
        if bad
        else None,
    )


def _switched_on(
    rules: tuple[Rule, ...], limits: Mapping[str, float | None]
) -> tuple[tuple[Rule, float], ...]:
    """The rules that have a limit, each with it."""
    named = ((rule, limits[rule.name]) for rule in rules)
    return tuple((rule, float(limit)) for rule, limit in named if limit is not None)


def limits_of(config: CleanConfig, language: str) -> Limits:
    """The limits for texts of a language (ISO 639-1) under these settings."""
    own = {**config.thresholds, **config.language_thresholds.get(language, {})}
    return limits_for(language, config.rules, tuple(own.items()), config.bad_words)


def judge(words: Words, limits: Limits) -> Verdict | Words:
    """The first rule that a text fails, or the text as C4's pass over its lines left it."""
    page = Page(words, limits.thresholds, limits.stop_words, limits.bad_words)
    failed = _first_failure(limits.before_c4, page)
    if failed:
        return failed
    page = clean_lines(page) if limits.reads_lines else page
    return _first_failure(limits.after_c4, page) or page.words


def _first_failure(rules: tuple[tuple[Rule, float], ...], page: Page) -> Verdict | None:
    for rule, limit in rules:
        if rule.bound and not rule.fails(rule.bound(page), limit):
            continue
        value = rule.measure(page)
        if value is not None and rule.fails(value, limit):
            return Verdict(rule.name, round(float(value), 6), limit)
    return None
