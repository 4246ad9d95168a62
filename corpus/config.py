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


DECIDE_NOTHING = ("dedup_memory_mb",)  # settings that no byte of the corpus depends on


@dataclass(frozen=True)
class CleanConfig:
    """How a crawl is cleaned. Every field has a default; `from_dict` refuses names that it does not know.

    languages: language codes to keep, e.g. ("en",) (ISO 639-1); empty keeps every language.
    profile: "fast" (our own reading, the quickest) or "faithful" (trafilatura, as FineWeb calls it).
    language_score: least certainty of the language, 0..1 (FineWeb: 0.65).
    first_look: certainty, 0..1, at which a page whose raw paragraphs are in an unwanted language is dropped before its
        text is extracted; null extracts every page. Two of 13,000 such drops differed from the slow way's answer.
    blocked_domains: domains whose pages, and whose subdomains' pages, are dropped.
    blocked_words: words that drop a page when one stands in its URL as a whole word (default: adult sites).
    suspect_words: words that drop a page when two of them stand in its URL.
    max_page_bytes: larger pages are dropped unread (Common Crawl cuts pages at 1 to 5 MiB).
    max_text_chars: longer main texts are dropped (books of logs; the rules' cost grows with length).
    page_cpu_seconds: processor time, not wall-clock time, after which a page is given up as failed.
    page_memory_mb: memory that a page may take, in MiB, before it is given up as failed (an ordinary one takes 10).
    rules: where papers and published code differ: "fineweb" (what made FineWeb and FineWeb-2) or "papers".
    thresholds: quality thresholds by rule name, over those of `rules`; null switches a rule off (docs/rules.md).
    language_thresholds: the same for one language, e.g. {"de": {"gopher_min_words": 40}}.
    record_values: keep every rule's value for every page, for `stemma corpus simulate` (some 100 bytes a page).
    bad_words: words that drop a page whose text has one (C4's list is LDNOOBW's; none is shipped).
    dedup_urls: keep one page of each canonical URL.
    dedup_texts: keep one page of each text (case and space aside).
    dedup_near: keep one page of each cluster of near-duplicates.
    jaccard: least Jaccard similarity of two pages' shingles for them to be near-duplicates, computed exactly.
    shingle_words: words in a shingle (FineWeb: 5).
    minhash_bands: bands of the MinHash signature; two pages are compared when one whole band agrees.
    minhash_rows: hashes a band. 24 bands of 8 find 98.8 % of the pairs at Jaccard 0.8, half of those at 0.65.
    minhash_seed: seed of the MinHash permutations.
    dedup_lines: remove lines that stand in more than so many documents of the crawl; 0 removes none.
    dedup_substrings: remove runs of at least so many tokens that stood before in the crawl; 0 removes none (Lee et
        al. 2021: 50).
    dedup_memory_mb: memory that deduplication may use, in MiB, beside what it must hold (docs/deduplication.md). The
        result does not depend on it.
    quality_model: path of a quality classifier ('stemma corpus train-classifier'); empty for none. Its content, not its
        path, names the settings.
    quality_keep: share of each language's documents that the classifier keeps, the best (DCLM: 0.1).
    remove_pii: kinds of personal data to replace by placeholders, of email, ip, phone, iban and card.
    max_failure_rate: largest share of failed (unreadable) records; more fails the whole corpus.
    failure_rate_records: crawls of fewer records are not held to max_failure_rate.
    """

    languages: tuple[str, ...] = ("en",)
    profile: str = "fast"
    language_score: Number = 0.65
    first_look: Number | None = 0.9
    blocked_domains: tuple[str, ...] = ()
    blocked_words: tuple[str, ...] = BLOCKED_WORDS
    suspect_words: tuple[str, ...] = SUSPECT_WORDS
    max_page_bytes: int = 8 << 20
    max_text_chars: int = 1_000_000
    page_cpu_seconds: int = 20
    page_memory_mb: int = 1024
    rules: str = "fineweb"
    thresholds: Mapping[str, Limit] = field(default_factory=dict)
    language_thresholds: Mapping[str, Mapping[str, Limit]] = field(default_factory=dict)
    bad_words: tuple[str, ...] = ()
    record_values: bool = False
    dedup_urls: bool = True
    dedup_texts: bool = True
    dedup_near: bool = True
    jaccard: Number = 0.8
    shingle_words: int = 5
    minhash_bands: int = 24
    minhash_rows: int = 8
    minhash_seed: int = 1
    dedup_lines: int = 0
    dedup_substrings: int = 0
    dedup_memory_mb: int = 1024
    quality_model: str = ""
    quality_keep: Number = 0.1
    remove_pii: tuple[str, ...] = PII_KINDS
    max_failure_rate: Number = 0.2
    failure_rate_records: int = 100

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
                f"cleaned_corpus.page_memory_mb is {self.page_memory_mb}; no page can do with less than 64."
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
        """The settings that decide what the rules say of a page; `from_dict` takes them back."""
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
        deciding = {name: value for name, value in asdict(self).items() if name not in DECIDE_NOTHING}
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
