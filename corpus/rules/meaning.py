"""What each reason in the ledger means, in words: for `stemma why` and the report.

The quality rules say it themselves (corpus/rules/quality.py: docstring, side and source); the others are written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEANINGS = {
    # read
    "revisit": "The record only says that the page had not changed since an earlier visit.",
    "http_status": "The server did not answer 200 (OK), so this is an error page or a redirect.",
    "not_text": "Neither HTML nor plain text: an image, a PDF, a script or the like.",
    "empty": "The server sent nothing but blanks.",
    "too_large": "Larger than max_page_bytes.",
    "truncated": "The file or the record was cut short.",
    "corrupt_gzip": "The compressed bytes of this record are damaged.",
    "compression_bomb": "A small gzip member that unpacks to hundreds of megabytes.",
    "bad_length": "The record's length is wrong or missing.",
    "bad_digest": "The record's bytes are not those that its digest was taken of.",
    "bad_http": "The record claims to hold an HTTP response and does not.",
    "bad_encoding": "The page's compression or transfer encoding could not be undone.",
    "not_a_record": "Bytes between two records that are no record.",
    "no_pages": "The file holds no page at all.",
    # url
    "not_a_web_address": "The URL is not http, https or ftp, or has no host, and the record is not HTML.",
    "blocked_domain": "The domain is on the block list.",
    "blocked_word": "A word of the URL is on the list that drops a page at once.",
    "suspect_words": "Two words of the URL are on the list of suspects.",
    # extraction
    "no_main_text": "Menus, links and notices, but no run of prose that could be the page's text.",
    "too_long": "The main text is longer than max_text_chars.",
    "parser_error": "The HTML parser gave up on the page.",
    "parser_crash": "The page killed the parser's process.",
    "cpu_time": "The page used up the processor time that one page may have.",
    "memory": "The page used up the memory that one page may have.",
    # language
    "other_language": "Surely written in a language that is not wanted.",
    "uncertain_language": "The language is guessed with less certainty than asked for.",
    # dedup
    "duplicate_url": "Another capture of the same address was kept.",
    "duplicate_text": "The same text, case and spacing aside, was kept from another page.",
    "near_duplicate": "Nearly the same text was kept from another page (Jaccard similarity of word shingles, exact).",
    "repeats_removed": "Kept, without lines or runs of words that other documents repeat (value: share of the text).",
    "too_little_left": "Too few words were left when what other documents repeat had been taken out.",
    # classifier
    "quality_classifier": "Not among the best share of its language by the quality classifier's score.",
    # pii
    "replaced": "Kept, with personal data replaced by placeholders.",
}
# Rules of pages that hurt the reader.
NOT_READ_AGAIN = frozenset({"parser_crash", "cpu_time", "memory", "parser_error"})

# Their numbers say nothing.
YES_OR_NO = frozenset({"empty", "no_main_text", "duplicate_url", "duplicate_text"})


def meaning(rule: str | None) -> str:
    """One sentence on what a rule of the ledger asks; '' for one that nobody knows."""
    if rule in MEANINGS:
        return MEANINGS[rule]
    from corpus.rules.quality import RULES

    return next((_of_quality(known) for known in RULES if known.name == rule), "")


def _of_quality(rule) -> str:
    """'Tokens with a letter, of all tokens: at least 0.8 (Gopher, A.1.1).'"""
    measures = (rule.measure.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    words = measures or rule.name.partition("_")[2].replace("_", " ").capitalize()
    return f"{words} ({rule.source})."


def reason(row: Mapping[str, Any]) -> str:
    """The stage, rule and measurement of a ledger's row: 'quality: gopher_letters, measured 0.71, below 0.8'."""
    words = f"{row['stage']}: {row['rule']}"
    value, limit = row.get("value"), row.get("threshold")
    if value is None or row["rule"] in YES_OR_NO:
        return words
    if row["rule"] == "replaced":
        return f"{words} in {number(value)} places"
    if row["rule"] == "http_status":
        return f"{words} {number(value)} instead of {number(limit)}" if limit else f"{words} {number(value)}"
    words += f", measured {number(value)}"
    if limit is not None:
        side = "above" if value > limit else "below" if value < limit else "at"
        words += f", {side} the limit of {number(limit)}"
    return words


def number(value: float | None) -> str:
    """A measurement for people: whole ones with commas, others to four digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
