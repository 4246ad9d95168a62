"""The published thresholds of Gopher, C4 and FineWeb: one row a rule or setting, with what papers and code say.

Gopher = Rae et al. 2021, arXiv 2112.11446, A.1.1 and table A1. C4 = Raffel et al. 2020, arXiv 1910.10683, section 2.2.
FineWeb = Penedo et al. 2024, arXiv 2406.17557, section 3. FineWeb-2 = Penedo et al. 2025, arXiv 2506.20920. Where
papers and published code differ, the row says so and holds both: the flavour "fineweb" is what huggingface/datatrove
ran to make FineWeb (other languages: FineWeb-2's thresholds, languages.py), the flavour "papers" what the papers say.
Notable: imports nothing, so that settings can be checked without the libraries that measure (quality.py).
"""

from dataclasses import dataclass

FLAVOURS = ("fineweb", "papers")
GOPHER, GOPHER_TABLE = "Gopher, A.1.1", "Gopher, table A1"
C4, C4_CODE, FINEWEB = "C4, section 2.2", "C4's published code", "FineWeb, section 3.6"
DATATROVE = "datatrove"


@dataclass(frozen=True, slots=True)
class Threshold:
    """A rule's row: a page fails whose measure is above the limit (side 'max') or below it (side 'min').

    `limit`: flavour "fineweb", English; None is off. `papers`: flavour "papers".
    """

    name: str
    side: str
    limit: float | None
    source: str
    note: str = ""
    papers: float | str | None = "as above"

    def fails(self, value: float, limit: float) -> bool:
        """Whether a measured value is beyond the limit."""
        return value > limit if self.side == "max" else value < limit


@dataclass(frozen=True, slots=True)
class Setting:
    """A number that is not a page rule: how a measure counts, or how C4's pass edits lines. None or 0 is off."""

    name: str
    limit: float | None
    what: str
    source: str
    note: str = ""
    papers: float | str | None = "as above"


_CHARS = "of all characters, spaces included, as in datatrove"
_REPEATED = f"{_CHARS}; the first occurrence is not counted (gopher_first_of_repeated)"
_PARAGRAPHS = "an extractor that writes no empty lines gives one paragraph"
BEFORE_C4: tuple[Threshold, ...] = (
    Threshold("gopher_dup_paragraphs", "max", 0.30, GOPHER_TABLE, _PARAGRAPHS),
    Threshold("gopher_dup_paragraph_chars", "max", 0.20, GOPHER_TABLE, _PARAGRAPHS),
    Threshold("gopher_dup_lines", "max", 0.30, GOPHER_TABLE),
    Threshold("gopher_dup_line_chars", "max", 0.20, GOPHER_TABLE),
    *(
        Threshold(f"gopher_top_{n}_gram", "max", limit, GOPHER_TABLE, _CHARS)
        for n, limit in ((2, 0.20), (3, 0.18), (4, 0.16))
    ),
    *(
        Threshold(f"gopher_dup_{n}_grams", "max", limit, GOPHER_TABLE, _REPEATED)
        for n, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    ),
    Threshold("gopher_min_words", "min", 50, GOPHER),
    Threshold("gopher_max_words", "max", 100_000, GOPHER),
    Threshold("gopher_min_word_length", "min", 3, GOPHER),
    Threshold("gopher_max_word_length", "max", 10, GOPHER),
    Threshold("gopher_hashes", "max", 0.1, GOPHER, "what is a word: see gopher_signs_are_words"),
    Threshold("gopher_ellipses", "max", 0.1, GOPHER, "what is a word: see gopher_signs_are_words"),
    Threshold("gopher_bullet_lines", "max", 0.9, GOPHER, "bullets: • and -, as in datatrove"),
    Threshold("gopher_ellipsis_lines", "max", 0.3, GOPHER),
    Threshold("gopher_letters", "min", 0.8, GOPHER, "what is a word: see gopher_signs_are_words"),
    Threshold(
        "gopher_stop_words",
        "min",
        2,
        GOPHER,
        "distinct words, case-sensitive, as in datatrove; the paper names eight English words",
    ),
)
AFTER_C4: tuple[Threshold, ...] = (
    Threshold("c4_lorem_ipsum", "max", 0, C4),
    Threshold(
        "c4_curly_bracket", "max", 0, C4, "applied to the lines that are left, as in both implementations"
    ),
    Threshold(
        "c4_bad_words",
        "max",
        0,
        C4,
        "a list of your own (setting bad_words); C4 used LDNOOBW's; FineWeb does not apply it",
    ),
    Threshold(
        "c4_min_sentences",
        "min",
        5,
        C4,
        "5 in the version that datatrove cites and in datatrove; 3 in arXiv's last version and in C4's published code",
        papers=3,
    ),
    Threshold(
        "mc4_long_lines",
        "min",
        None,
        "mC4, arXiv 2010.11934, section 3.1",
        "3 in mC4, which applied it instead of terminal punctuation; FineWeb does not apply it",
    ),
    Threshold(
        "fineweb_line_ends",
        "min",
        0.12,
        FINEWEB,
        "the paper drops at the threshold too, datatrove only below it",
    ),
    Threshold("fineweb_short_lines", "max", 0.67, FINEWEB, "see fineweb_short_line_chars"),
    Threshold(
        "fineweb_dup_line_chars",
        "max",
        0.01,
        FINEWEB,
        "0.1 in the paper, 0.01 in datatrove; FineWeb-2 returned to 0.1",
        papers=0.1,
    ),
    Threshold(
        "fineweb_line_breaks",
        "max",
        0.3,
        DATATROVE,
        "in the code only, not in the paper",
        papers=None,
    ),
)
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
        "the paper counts the characters within all duplicate n-grams; datatrove those of later ones only",
        papers=1,
    ),
    Setting(
        "fineweb_short_line_chars",
        30,
        "longest line that counts as short, characters",
        FINEWEB,
        "the paper says shorter than 30 characters; in datatrove 30 is short too",
        papers=29,
    ),
    Setting(
        "c4_line_max_word_length",
        1000,
        "longest word of a line, characters; lines with a longer one are dropped",
        C4_CODE,
        "in the code only, not in the paper",
        papers=None,
    ),
    Setting("c4_line_citations", 1, "citation marks like [1], [edit], [citation needed] are removed", C4),
    Setting(
        "c4_line_terminal_punctuation",
        None,
        'lines that do not end with . ? ! or ", or that end with ..., are dropped',
        C4,
        "C4 required it; FineWeb (section 3.5) left it out, since it dropped 30 % of the tokens",
        papers=1,
    ),
    Setting(
        "c4_line_min_words",
        3,
        "fewest words of a line; lines with fewer are dropped",
        C4,
        "3 in the version that datatrove cites and in datatrove; 5 in arXiv's last version and in C4's published code",
        papers=5,
    ),
    Setting("c4_line_javascript", 1, "lines with the word javascript are dropped", C4),
    Setting(
        "c4_line_policy", 1, "lines that mention cookies, privacy policy or terms of use are dropped", C4
    ),
)
ROWS: tuple[Threshold | Setting, ...] = (*BEFORE_C4, *AFTER_C4, *SETTINGS)
DEFAULT_THRESHOLDS: dict[str, float | None] = {row.name: row.limit for row in ROWS}
