"""Scores of a cleaned corpus against the known truth of a built sample.

A stage is scored over the records that reached it. Duplicates are counted by cluster: which page of a cluster is kept
depends on the rule, but exactly one must be.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from corpus import ledger
from corpus.config import CleanConfig
from corpus.words import tokenize

Rows = dict[str, dict[str, Any]]  # by record id

AFTER = {stage: ledger.STAGES[number:] for number, stage in enumerate(ledger.STAGES)}


def score_truth(
    truth: Path, folder: Path, pii_found: dict[str, list[tuple[str, str]]], config: CleanConfig
) -> dict[str, Any]:
    """Precision and recall, with their counts, of language, duplicate and PII handling, and word F1 of the text.

    `truth` is the sample's truth.parquet, `folder` the cleaned corpus, `pii_found` the replaced personal data by record
    id: (kind, text) of each.
    """
    known = {row["record_id"]: row for row in pq.read_table(truth).to_pylist()}
    rows = {row["record_id"]: row for row in ledger.read_ledger(folder).to_pylist()}
    texts = ledger.document_dataset(folder).to_table(columns=["record_id", "text"]).to_pylist()
    kept = {row["record_id"]: row["text"] for row in texts}
    return {
        "language": _language(known, rows, config),
        "duplicates": _duplicates(known, rows),
        "pii": _pii(known, kept, pii_found),
        "extraction": _extraction(known, kept),
    }


def precision_recall(right: int, wrong: int, missed: int) -> dict[str, float | int | None]:
    """Precision, recall and their counts; None where the denominator is 0."""
    return {
        "precision": round(right / (right + wrong), 4) if right + wrong else None,
        "recall": round(right / (right + missed), 4) if right + missed else None,
        "right": right,
        "wrong": wrong,
        "missed": missed,
    }


def _reached(row: dict[str, Any], stage: str) -> bool:
    return row["outcome"] == ledger.KEPT or row["stage"] in AFTER[stage]


def _language(known: Rows, rows: Rows, config: CleanConfig) -> dict[str, Any] | None:
    """Dropping pages of languages that are not wanted."""
    if not config.languages:
        return None
    counts: Counter[tuple[bool, bool]] = Counter()
    for record_id, page in known.items():
        row = rows.get(record_id)
        if row is None or not page["language"] or not _reached(row, "language"):
            continue
        foreign, dropped = page["language"] not in config.languages, row["stage"] == "language"
        counts[foreign, dropped] += 1
    return precision_recall(counts[True, True], counts[False, True], counts[True, False])


def _duplicates(known: Rows, rows: Rows) -> dict[str, Any]:
    """Dropping all but one page of each planted cluster, of the pages that reached deduplication."""
    clusters = defaultdict(list)
    for record_id, page in known.items():
        if record_id in rows and _reached(rows[record_id], "dedup"):
            clusters[_root(known, page)].append(rows[record_id])
    counts: Counter[str] = Counter()
    for root, members in clusters.items():
        dropped = [row for row in members if row["stage"] == "dedup"]
        right = sum(
            row["duplicate_of"] in known and _root(known, known[row["duplicate_of"]]) == root
            for row in dropped
        )
        counts["right"] += right
        counts["wrong"] += len(dropped) - right
        counts["missed"] += max(0, len(members) - 1 - right)
    return precision_recall(counts["right"], counts["wrong"], counts["missed"])


def _root(known: Rows, page: dict[str, Any]) -> str:
    while page["duplicate_of"] in known:
        page = known[page["duplicate_of"]]
    return page["record_id"]


def _pii(known: Rows, kept: dict[str, str], found: dict[str, list[tuple[str, str]]]) -> dict[str, Any]:
    """Replacing planted personal data in the kept pages, over all and by kind, each occurrence counted.

    Data that extraction lost before are counted apart.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record_id, text in kept.items():
        if record_id not in known:
            continue
        planted = {(item["kind"], item["text"]) for item in known[record_id]["pii"] or []}
        replaced = [tuple(item) for item in found.get(record_id, [])]
        for kind, shown in replaced:
            counts[kind]["right" if (kind, shown) in planted else "wrong"] += 1
        for kind, shown in planted:
            counts[kind]["missed"] += text.count(shown)
            counts[kind]["not_in_text"] += (kind, shown) not in replaced and shown not in text
    scores = {kind: _with_lost(count) for kind, count in sorted(counts.items())}
    return _with_lost(sum(counts.values(), Counter())) | {"kinds": scores}


def _with_lost(counts: Counter[str]) -> dict[str, Any]:
    scores = precision_recall(counts["right"], counts["wrong"], counts["missed"])
    return scores | {"not_in_text": counts["not_in_text"]}


def word_f1(text: str, reference: str) -> tuple[float, float, float]:
    """(precision, recall, F1) of a text's words, as a bag, against a reference's."""
    ours, theirs = (Counter(w for w in tokenize(t.lower()) if w[0].isalnum()) for t in (text, reference))
    shared = (ours & theirs).total()
    if not shared:
        return (float(not ours), float(not theirs), float(ours == theirs))
    precision, recall = shared / ours.total(), shared / theirs.total()
    return precision, recall, 2 * precision * recall / (precision + recall)


def _extraction(known: Rows, kept: dict[str, str]) -> dict[str, Any]:
    """Mean word precision, recall and F1 of the kept documents against the planted main text."""
    scores = [word_f1(text, known[r]["text"]) for r, text in kept.items() if r in known and known[r]["text"]]
    if not scores:
        return {"documents": 0}
    means = [round(sum(column) / len(scores), 4) for column in zip(*scores, strict=True)]
    return dict(zip(("precision", "recall", "f1"), means, strict=True)) | {"documents": len(scores)}
