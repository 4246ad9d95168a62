"""Is a text worth learning from? The published heuristics of Gopher, C4 and FineWeb, each a named row of a table.

A rule measures one number (measures.py) and compares it with one threshold; the first rule that fails decides, in
the order in which FineWeb's pipeline asks. C4 also edits: it drops lines, and the rules after it see what is left.
Sources: Gopher = Rae et al. 2021, arXiv 2112.11446, A.1.1 and table A1. C4 = Raffel et al. 2020, arXiv 1910.10683,
section 2.2. FineWeb = Penedo et al. 2024, arXiv 2406.17557, section 3. FineWeb-2 = Penedo et al. 2025, arXiv
2506.20920. Where papers and published code differ, the row says so and holds both: the flavour "fineweb" is what
huggingface/datatrove ran to make FineWeb (other languages: FineWeb-2's thresholds, languages.py), the flavour
"papers" is what the papers say. Every threshold can be set on its own, for all languages or for one.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from corpus.rules import measures as m
from corpus.rules.languages import COLUMNS, EVERYWHERE, OTHER_LANGUAGES, STOP_WORDS, THRESHOLDS
from corpus.rules.lines import clean_lines
from corpus.rules.measures import Page
from corpus.words import Words

FLAVOURS = ("fineweb", "papers")
GOPHER, GOPHER_TABLE = "Gopher, A.1.1", "Gopher, table A1"
C4, C4_CODE, FINEWEB = "C4, section 2.2", "C4's published code", "FineWeb, section 3.6"
DATATROVE = "datatrove"


@dataclass(frozen=True, slots=True)
class Rule:
    """One heuristic: `measure` a text, fail it above the limit (side 'max') or below it (side 'min').

    `limit`: flavour "fineweb", English; None is off. `papers`: flavour "papers". `at_best`: a cheap number that the
    measure is never better than; where even that passes, the measure is not taken.
    """

    name: str
    side: str
    limit: float | None
    measure: Callable[[Page], float | None]  # None: the rule does not apply to this text
    source: str
    note: str = ""
    papers: float | str | None = "as above"
    at_best: Callable[[Page], float] | None = None

    def fails(self, value: float, limit: float) -> bool:
        """Whether a measured value is beyond the limit."""
        return value > limit if self.side == "max" else value < limit


@dataclass(frozen=True, slots=True)
class Setting:
    """A number that is no page rule: how a measure counts, or how C4's pass edits lines. None or 0 is off."""

    name: str
    limit: float | None
    what: str
    source: str
    note: str = ""
    papers: float | str | None = "as above"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a text was dropped."""

    rule: str
    value: float
    threshold: float


_CHARS = "of all characters, spaces included, as in datatrove"
_REPEATED = f"{_CHARS}; the first occurrence is not counted (gopher_first_of_repeated)"
_PARTED = "an extractor that leaves no empty lines leaves one paragraph"
BEFORE_C4 = (
    Rule("gopher_dup_paragraphs", "max", 0.30, m.dup_paragraph_fraction, GOPHER_TABLE, _PARTED),
    Rule("gopher_dup_paragraph_chars", "max", 0.20, m.dup_paragraph_char_fraction, GOPHER_TABLE, _PARTED),
    Rule("gopher_dup_lines", "max", 0.30, m.dup_line_fraction, GOPHER_TABLE),
    Rule("gopher_dup_line_chars", "max", 0.20, m.dup_line_char_fraction, GOPHER_TABLE),
    *(
        Rule(
            f"gopher_top_{n}_gram",
            "max",
            limit,
            m.top_ngram_fraction(n),
            GOPHER_TABLE,
            _CHARS,
            at_best=m.top_ngram_at_most(n),
        )
        for n, limit in ((2, 0.20), (3, 0.18), (4, 0.16))
    ),
    *(
        Rule(
            f"gopher_dup_{n}_grams",
            "max",
            limit,
            m.dup_ngram_fraction(n),
            GOPHER_TABLE,
            _REPEATED,
            at_best=m.dup_ngram_at_most,
        )
        for n, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    ),
    Rule("gopher_min_words", "min", 50, m.n_words, GOPHER),
    Rule("gopher_max_words", "max", 100_000, m.n_words, GOPHER),
    Rule("gopher_min_word_length", "min", 3, m.mean_word_length, GOPHER),
    Rule("gopher_max_word_length", "max", 10, m.mean_word_length, GOPHER),
    Rule("gopher_hashes", "max", 0.1, m.hash_ratio, GOPHER, "a word: see gopher_signs_are_words"),
    Rule("gopher_ellipses", "max", 0.1, m.ellipsis_ratio, GOPHER, "a word: see gopher_signs_are_words"),
    Rule("gopher_bullet_lines", "max", 0.9, m.bullet_line_fraction, GOPHER, "bullets: • and -, as datatrove"),
    Rule("gopher_ellipsis_lines", "max", 0.3, m.ellipsis_line_fraction, GOPHER),
    Rule("gopher_letters", "min", 0.8, m.letter_fraction, GOPHER, "a word: see gopher_signs_are_words"),
    Rule(
        "gopher_stop_words",
        "min",
        2,
        m.stop_words,
        GOPHER,
        "distinct words, case-sensitive, as datatrove; the paper names eight English words",
        at_best=m.stop_words_at_least,
    ),
)
AFTER_C4 = (
    Rule("c4_lorem_ipsum", "max", 0, m.lorem_ipsum, C4),
    Rule("c4_curly_bracket", "max", 0, m.curly, C4, "asked of the lines that are left, as in both codes"),
    Rule(
        "c4_bad_words",
        "max",
        0,
        m.bad_words,
        C4,
        "the list is yours (setting bad_words); C4 took LDNOOBW's; FineWeb did not ask",
    ),
    Rule(
        "c4_min_sentences",
        "min",
        5,
        m.sentences,
        C4,
        "5 in the edition that datatrove cites, and there; 3 in arXiv's last edition and C4's published code",
        papers=3,
        at_best=m.sentences_at_least,
    ),
    Rule(
        "mc4_long_lines",
        "min",
        None,
        m.long_lines,
        "mC4, arXiv 2010.11934, section 3.1",
        "3 in mC4, which asked it in the place of terminal punctuation; FineWeb did not ask",
    ),
    Rule(
        "fineweb_line_ends",
        "min",
        0.12,
        m.line_end_fraction,
        FINEWEB,
        "the paper drops at the threshold too, datatrove below it only",
    ),
    Rule("fineweb_short_lines", "max", 0.67, m.short_line_fraction, FINEWEB, "see fineweb_short_line_chars"),
    Rule(
        "fineweb_dup_line_chars",
        "max",
        0.01,
        m.fineweb_dup_line_char_fraction,
        FINEWEB,
        "0.1 in the paper, 0.01 in datatrove; FineWeb-2 went back to 0.1",
        papers=0.1,
    ),
    Rule(
        "fineweb_line_breaks",
        "max",
        0.3,
        m.line_break_ratio,
        DATATROVE,
        "in the code only, not in the paper",
        papers=None,
    ),
)
RULES = BEFORE_C4 + AFTER_C4
BY_NAME = {rule.name: rule for rule in RULES}
SETTINGS = (
    Setting(
        "gopher_signs_are_words",
        1,
        "signs count as words in gopher_hashes, gopher_ellipses and gopher_letters",
        DATATROVE,
        "the papers speak of words; counting signs makes gopher_letters stricter, the other two laxer",
        papers=0,
    ),
    Setting(
        "gopher_first_of_repeated",
        0,
        "the first occurrence of a repeated n-gram counts too in gopher_dup_N_grams",
        DATATROVE,
        "the paper counts the characters contained within all duplicate n-grams; datatrove later ones only",
        papers=1,
    ),
    Setting(
        "fineweb_short_line_chars",
        30,
        "longest short line, characters",
        FINEWEB,
        "the paper says shorter than 30 characters, datatrove takes 30 as short too",
        papers=29,
    ),
    Setting(
        "c4_line_max_word_length",
        1000,
        "lines with a longer word go, characters",
        C4_CODE,
        "in the code only, not in the paper",
        papers=None,
    ),
    Setting("c4_line_citations", 1, "marks like [1], [edit], [citation needed] are cut out", C4),
    Setting(
        "c4_line_terminal_punctuation",
        None,
        'lines that do not end with . ? ! or ", or end with ..., go',
        C4,
        "C4 asked for it; FineWeb (section 3.5) saw it take 30 % of the tokens and left it out",
        papers=1,
    ),
    Setting(
        "c4_line_min_words",
        3,
        "lines of fewer words go",
        C4,
        "3 in the edition that datatrove cites, and there; 5 in arXiv's last edition and C4's published code",
        papers=5,
    ),
    Setting("c4_line_javascript", 1, "lines with the word javascript go", C4),
    Setting("c4_line_policy", 1, "lines that speak of cookies, privacy policy or terms of use go", C4),
)
LINE_SETTINGS = tuple(setting.name for setting in SETTINGS if setting.name.startswith("c4_line_"))
DEFAULT_THRESHOLDS: dict[str, float | None] = {row.name: row.limit for row in (*RULES, *SETTINGS)}


@dataclass(frozen=True)
class Limits:
    """What the texts of one language are held to: thresholds by name, and word lists."""

    thresholds: Mapping[str, float | None]
    before_c4: tuple[tuple[Rule, float], ...]
    after_c4: tuple[tuple[Rule, float], ...]
    stop_words: frozenset[str] | None = None
    bad_words: re.Pattern | None = None

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
    rows = (*RULES, *SETTINGS)
    values = dict(DEFAULT_THRESHOLDS)
    row = THRESHOLDS.get(language)
    own = EVERYWHERE | dict(zip(COLUMNS, row, strict=True)) if row else OTHER_LANGUAGES
    if flavour == "papers":
        values |= {each.name: each.papers for each in rows if not isinstance(each.papers, str)}
        if language != "en":  # what cannot be asked of a language is not asked
            values |= {name: None for name in COLUMNS if own.get(name, 0) is None}
    elif language != "en":
        values |= own
    values |= dict(thresholds)
    bad = "|".join(map(re.escape, sorted(bad_words)))
    return Limits(
        values,
        tuple((rule, float(values[rule.name])) for rule in BEFORE_C4 if values[rule.name] is not None),
        tuple((rule, float(values[rule.name])) for rule in AFTER_C4 if values[rule.name] is not None),
        frozenset(STOP_WORDS[language].split()) if language in STOP_WORDS else None,
        re.compile(rf"(?<!\w)(?:{bad})(?!\w)" if language not in ("zh", "ja", "th") else bad)
        if bad
        else None,
    )


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
        if rule.at_best and not rule.fails(rule.at_best(page), limit):
            continue
        value = rule.measure(page)
        if value is not None and rule.fails(value, limit):
            return Verdict(rule.name, round(float(value), 6), limit)
    return None
