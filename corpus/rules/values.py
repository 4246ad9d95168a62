"""What every rule measured on every page that reached the rules: the optional part `values` of a corpus.

With `record_values`, `values/*.parquet` is written beside `ledger/*.parquet`, part by part: one row a page, one column
a rule, and `row`, the index of the page's row in the ledger's part of the same name. The rules after C4's pass are
measured on the text that the pass leaves, which no page rule's threshold changes; so these numbers and the ledger
determine what any other threshold would have decided (simulate.py). A null means that the rule does not apply.
"""

from typing import Any

import pyarrow as pa

from corpus.rules.lines import clean_lines
from corpus.rules.measures import Page
from corpus.rules.quality import AFTER_C4, BEFORE_C4, RULES, Limits
from corpus.words import Words

VALUES_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # in the ledger's part of the same name
        pa.field("language", pa.string(), nullable=False),
        pa.field("language_score", pa.float64(), nullable=False),
        pa.field("characters", pa.int64(), nullable=False),  # of the main text, before C4's pass
        pa.field("words", pa.int64(), nullable=False),
        *(pa.field(rule.name, pa.float64()) for rule in RULES),
    ]
)


def measure_all(words: Words, limits: Limits, language: str, language_score: float) -> dict[str, Any]:
    """One row of VALUES_SCHEMA without `row`: every rule's value, including rules that are switched off."""
    page = Page(words, limits.thresholds, limits.stop_words, limits.bad_words)
    left = clean_lines(page)
    return {
        "language": language,
        "language_score": language_score,
        "characters": len(words.text),
        "words": words.n_words,
        **{rule.name: rule.measure(page) for rule in BEFORE_C4},
        **{rule.name: rule.measure(left) for rule in AFTER_C4},
    }
