"""What each reason in the ledger means, in words: for `stemma why` and the report.

For the quality rules it is the docstring of their measure and their source (quality.py); the others are written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corpus.rules.quality import Rule

DECIDES_NOTHING = "words for people"
MEANINGS = {
    # read
    "revisit": "The record only states that the page had not changed since an earlier visit.",
    "http_status": "The server did not answer 200 (OK), so this is an error page or a redirect.",
    "not_text": "Neither HTML nor plain text: an image, a PDF, a script or the like.",
    "empty": "The response body is empty or white space.",
    "too_large": "The page is larger than max_page_bytes.",
    "truncated": "The file or the record is truncated.",
    "corrupt_gzip": "The compressed bytes of this record are damaged.",
    "compression_bomb": "A small gzip member that unpacks to hundreds of megabytes.",
    "bad_length": "The record's length is wrong or missing.",
    "bad_digest": "The record's bytes do not match its digest.",
    "bad_http": "The record is declared as an HTTP response but is not one.",
    "bad_encoding": "The page's compression or transfer encoding could not be decoded.",
    "not_a_record": "Bytes between two records that are not a record.",
    "no_pages": "The file holds no page at all.",
    # url
    "not_a_web_address": "The URL is not http, https or ftp, or has no host, and the record is not HTML.",
    "blocked_domain": "The domain is in blocked_domains.",
    "blocked_word": "A word of the URL is in blocked_words.",
    "suspect_words": "Two words of the URL are in suspect_words.",
    # extraction
    "no_main_text": "Menus, links and notices, but no prose that could be the page's text.",
    "too_long": "The main text is longer than max_text_chars.",
    "parser_error": "The HTML parser raised an error on the page.",
    "parser_crash": "The parser's process crashed on the page.",
    "cpu_time": "The page exceeded the processor time allowed for one page.",
    "memory": "The page exceeded the memory allowed for one page.",
    # language
    "other_language": "Written in a language that is not wanted.",
    "uncertain_language": "The language was identified with less certainty than required.",
    # dedup
    "duplicate_url": "Another capture of the same address was kept.",
    "duplicate_text": "The same text, case and white space aside, was kept from another page.",
    "near_duplicate": "A nearly identical text was kept from another page (exact Jaccard similarity of word shingles).",
    "repeats_removed": "Kept, without lines or passages that other documents repeat (value: share of the text).",
    "too_little_left": "Too few words were left after removing what other documents repeat.",
    # classifier
    "quality_classifier": "Not in the share of its language that the quality classifier scores best.",
    # pii
    "replaced": "Kept, with personal data replaced by placeholders.",
}
# Rules of pages on which the parser failed.
NOT_READ_AGAIN = frozenset({"parser_crash", "cpu_time", "memory", "parser_error"})
# Rules whose value and threshold carry no information.
YES_OR_NO = frozenset({"empty", "no_main_text", "duplicate_url", "duplicate_text"})


def meaning(rule: str | None) -> str:
    """One sentence on what a rule of the ledger checks; '' for an unknown rule."""
    if rule in MEANINGS:
        return MEANINGS[rule]
    from corpus.rules.quality import RULES

    return next((_of_quality(known) for known in RULES if known.name == rule), "")


def _of_quality(rule: Rule) -> str:
    """'Share of tokens with a letter (Gopher, A.1.1).'"""
    measured = (rule.measure.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    measured = measured or rule.name.partition("_")[2].replace("_", " ").capitalize()
    return f"{measured} ({rule.source})."


def reason(row: Mapping[str, Any]) -> str:
    """The stage, rule and measurement of a ledger's row: 'quality: gopher_letters, measured 0.71, below 0.8'."""
    text = f"{row['stage']}: {row['rule']}"
    value, limit = row.get("value"), row.get("threshold")
    if value is None or row["rule"] in YES_OR_NO:
        return text
    if row["rule"] == "replaced":
        return f"{text} in {number(value)} places"
    if row["rule"] == "http_status":
        return f"{text} {number(value)} instead of {number(limit)}" if limit else f"{text} {number(value)}"
    text += f", measured {number(value)}"
    if limit is not None:
        side = "above" if value > limit else "below" if value < limit else "at"
        text += f", {side} the limit of {number(limit)}"
    return text


def number(value: float | None) -> str:
    """A measurement as text: whole numbers with commas, others to four significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
