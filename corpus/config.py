"""The settings of the cleaned corpus: the section `cleaned_corpus` of params.yaml.

Notable: the hash of the settings names finished work, so a number is kept in the type in which it was given (1 and
1.0 hash differently); this module loads none of the libraries that clean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.hashing import file_sha256, text_sha256
from core.settings import names_of, nearest, read_settings
from corpus.choices import PII_KINDS, PROFILES
from corpus.rules.thresholds import DEFAULT_THRESHOLDS, FLAVOURS

Number = int | float
Limit = bool | int | float | None  # a rule's threshold; None switches the rule off

BLOCKED_WORDS = (
    "hentai",
    "milf",
    "porn",
    "pornhub",
    "porno",
    "pornstar",
    "sexcam",
    "xhamster",
    "xvideos",
    "xxx",
)
SUSPECT_WORDS = (
    *(
        "adult",
        "betting",
        "bonus",
        "cam",
        "cams",
        "casino",
        "casinos",
        "erotic",
        "escort",
        "escorts",
        "free",
        "fuck",
    ),
    *(
        "gambling",
        "girls",
        "hardcore",
        "jackpot",
        "naked",
        "nude",
        "nudes",
        "poker",
        "pussy",
        "sex",
        "sexy",
        "slots",
    ),
    *("viagra", "webcam", "webcams"),
)
RULE_SETTINGS = ("languages", "language_score", "rules", "thresholds", "language_thresholds", "bad_words")
NOT_HASHED = ("dedup_memory_mb",)  # settings that no byte of the corpus depends on


@dataclass(frozen=True)
class CleanConfig:
    """How a crawl is cleaned. Every field has a default. Raises ConfigError for a value that cannot be used.

    `first_look` saves the extraction of most pages in other languages; 2 of 13,000 pages that it dropped were in a
    wanted language by their extracted text. 24 bands of 8 rows propose 98.8 % of the pairs at Jaccard 0.8 and half of
    those at 0.65. Rules and their thresholds: docs/rules.md. Deduplication: docs/deduplication.md.
    """

    languages: tuple[str, ...] = ("en",)  # to keep, ISO 639-1 codes; empty keeps every language
    profile: str = "fast"  # extraction: "fast" (ours) or "faithful" (trafilatura, as FineWeb calls it)
    language_score: Number = 0.65  # minimum certainty of the language, 0..1 (FineWeb's)
    # Certainty, 0..1, at which a page whose raw paragraphs are in an unwanted language is dropped before extraction;
    # null extracts every page.
    first_look: Number | None = 0.9
    blocked_domains: tuple[str, ...] = ()  # domains whose pages are dropped, subdomains included
    blocked_words: tuple[str, ...] = BLOCKED_WORDS  # one of these as a whole word of the URL drops the page
    suspect_words: tuple[str, ...] = SUSPECT_WORDS  # two of these in the URL drop the page
    max_page_bytes: int = 8 << 20  # larger pages are dropped unread (Common Crawl truncates at 1 to 5 MiB)
    max_text_chars: int = 1_000_000  # longer main texts are dropped (logs; the rules' cost grows with length)
    page_cpu_seconds: int = 20  # processor time, not wall-clock time, after which a page fails
    page_memory_mb: int = 1024  # memory, MiB, above which a page fails (an ordinary one takes 10)
    rules: str = "fineweb"  # where papers and published code differ: "fineweb" (the code) or "papers"
    thresholds: Mapping[str, Limit] = field(default_factory=dict)  # by rule, over those of `rules`; null: off
    # The same for single languages, e.g. {de: {gopher_min_words: 40}}.
    language_thresholds: Mapping[str, Mapping[str, Limit]] = field(default_factory=dict)
    bad_words: tuple[str, ...] = ()  # one of these in the text drops the page (C4's list is LDNOOBW's)
    record_values: bool = False  # keep every rule's value of every page, for `stemma corpus simulate`
    dedup_urls: bool = True  # keep one page of each canonical URL
    dedup_texts: bool = True  # keep one page of each text (case and spacing aside)
    dedup_near: bool = True  # keep one page of each cluster of near-duplicates
    jaccard: Number = 0.8  # minimum Jaccard similarity of the shingles of near-duplicates, computed exactly
    shingle_words: int = 5  # words in a shingle (FineWeb's)
    minhash_bands: int = 24  # of the MinHash signature; two pages are compared when one whole band agrees
    minhash_rows: int = 8  # hashes in a band
    minhash_seed: int = 1  # seed of the MinHash permutations
    dedup_lines: int = 0  # remove lines of more than this many documents of the crawl; 0: none
    dedup_substrings: int = 0  # remove repeated runs of this many tokens or more; 0: none (Lee et al.: 50)
    dedup_memory_mb: int = 1024  # memory for deduplication, MiB, beyond what it must hold; changes no result
    quality_model: str = ""  # path of a model of `stemma corpus train-classifier`; hashed by its content
    quality_keep: Number = 0.1  # share of each language's documents that the classifier keeps (DCLM's)
    remove_pii: tuple[str, ...] = PII_KINDS  # kinds of personal data to replace by placeholders
    max_failure_rate: Number = 0.2  # largest share of failed (unreadable) records; more fail the whole corpus
    failure_rate_records: int = 100  # crawls of fewer records are not checked against max_failure_rate

    def __post_init__(self) -> None:
        for name in (
            "languages",
            "blocked_domains",
            "blocked_words",
            "suspect_words",
            "bad_words",
            "remove_pii",
        ):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ConfigError(f"cleaned_corpus.{name} is a list, e.g. [{value}], not the text '{value}'.")
            object.__setattr__(self, name, tuple(value))
        self._check_rules()
        unknown = sorted(set(self.remove_pii) - set(PII_KINDS))
        if unknown:
            raise ConfigError(
                f"cleaned_corpus.remove_pii has no kind named {', '.join(unknown)}. "
                f"The kinds are: {', '.join(PII_KINDS)}."
            )
        if self.profile not in PROFILES:
            raise ConfigError(
                f"cleaned_corpus.profile is '{self.profile}'; the profiles are: {', '.join(PROFILES)}."
            )
        for name in ("jaccard", "quality_keep"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"cleaned_corpus.{name} is {getattr(self, name)}; it must be above 0 and at most 1."
                )
        for name in ("dedup_lines", "dedup_substrings"):
            if getattr(self, name) < 0:
                raise ConfigError(f"cleaned_corpus.{name} is {getattr(self, name)}; 0 switches it off.")
        if self.page_memory_mb < 64:
            raise ConfigError(
                f"cleaned_corpus.page_memory_mb is {self.page_memory_mb}; pages need at least 64."
            )
        for name in ("shingle_words", "minhash_bands", "minhash_rows", "page_cpu_seconds", "dedup_memory_mb"):
            if getattr(self, name) < 1:
                raise ConfigError(f"cleaned_corpus.{name} is {getattr(self, name)}; it must be at least 1.")

    def _check_rules(self) -> None:
        if self.rules not in FLAVOURS:
            raise ConfigError(f"cleaned_corpus.rules is '{self.rules}'; it can be {' or '.join(FLAVOURS)}.")
        named = set(self.thresholds).union(*self.language_thresholds.values())
        unknown = sorted(named - set(DEFAULT_THRESHOLDS))
        if unknown:
            raise ConfigError(
                f"cleaned_corpus.thresholds has no rule named {', '.join(unknown)}. "
                f"The rules are: {', '.join(DEFAULT_THRESHOLDS)}."
            )
        object.__setattr__(self, "thresholds", dict(sorted(self.thresholds.items())))
        by_language = {code: dict(sorted(own.items())) for code, own in self.language_thresholds.items()}
        object.__setattr__(self, "language_thresholds", dict(sorted(by_language.items())))

    def rule_settings(self) -> dict[str, Any]:
        """The settings that the rules' decisions depend on; `from_dict` reads them again."""
        return {name: value for name, value in asdict(self).items() if name in RULE_SETTINGS}

    @classmethod
    def from_dict(cls, section: Mapping[str, Any] | None) -> CleanConfig:
        """From a section of params.yaml. Raises ConfigError for a name or a value that it does not know."""
        known = names_of(cls)
        for name in section or ():
            if name not in known:
                raise ConfigError(
                    f"cleaned_corpus has no setting named {name}.{nearest(name, known)} It has: {', '.join(known)}."
                )
        return read_settings(cls, section, "cleaned_corpus")

    @cached_property
    def hash(self) -> str:
        """16 hex digits that name these settings: the ledger's `config_hash`. Raises ConfigError without its model."""
        deciding = {name: value for name, value in asdict(self).items() if name not in NOT_HASHED}
        if self.quality_model:
            deciding["quality_model"] = _model_sha256(self.quality_model)
        return text_sha256(json.dumps(deciding, sort_keys=True, separators=(",", ":")))[:16]


def _model_sha256(path: str) -> str:
    try:
        return file_sha256(Path(path))
    except OSError as error:
        raise ConfigError(
            f"cleaned_corpus.quality_model is {path}, which cannot be read ({error.strerror}). "
            "Make it with 'stemma corpus train-classifier', or leave the setting empty."
        ) from error
