"""What stats.json holds of a cleaned corpus: the funnel of stages, and counts by language, host, length and score."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from corpus import ledger
from corpus.config import CleanConfig

WORD_EDGES = (50, 100, 200, 400, 800, 1600, 3200, 6400, 12800)  # words, bins of the length histogram
SCORE_BINS = 20  # of the language's certainty, 0..1
TOP_HOSTS = 50


@dataclass(frozen=True)
class CleanStats:
    """The content of stats.json, its entries as attributes; and the seconds it took, which are not in the file."""

    data: dict[str, Any]
    seconds: float = 0.0

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class PartStats:
    """What stats.json is to know of one part of the corpus."""

    rows: list[tuple[str, str, str, int]]  # stage, rule, outcome, count
    hosts: Counter[str]  # of documents
    hosts_read: Counter[str]  # of records
    scores: Counter[str]  # documents by the score of their language, in bins
    other_scores: Counter[str]  # the same of pages dropped for their language
    languages: Counter[str]
    other_languages: Counter[str]  # of pages dropped for their language
    lengths: Counter[str]  # documents by words, in bins
    words: int
    characters: int
    bytes: int
    pii: Counter[str]  # replacements by kind
    pii_found: dict[str, list[tuple[str, str]]]  # record id -> (kind, text) of each; empty unless asked for


def count_part(
    rows: list[dict[str, Any]],
    documents: list[dict[str, Any]],
    n_words: list[int],
    pii: Counter[str],
    pii_found: dict[str, list[tuple[str, str]]],
) -> PartStats:
    """The numbers of one part, of its ledger's rows and its documents. `n_words`: of each document."""
    return PartStats(
        rows=[(*key, count) for key, count in ledger.count_rows(rows).items()],
        hosts=Counter(document["host"] for document in documents),
        hosts_read=Counter(row["host"] for row in rows),
        scores=Counter(_score_bin(document["language_score"]) for document in documents),
        other_scores=Counter(
            _score_bin(row["value"])
            for row in rows
            if row["stage"] == "language" and row["value"] is not None
        ),
        languages=Counter(document["language"] for document in documents),
        other_languages=Counter(row["detail"] for row in rows if row["rule"] == "other_language"),
        lengths=Counter(map(_length_bin, n_words)),
        words=sum(n_words),
        characters=sum(len(document["text"]) for document in documents),
        bytes=sum(document["n_bytes"] for document in documents),
        pii=pii,
        pii_found=pii_found,
    )


def _length_bin(n_words: int) -> str:
    below = [edge for edge in WORD_EDGES if edge <= n_words]
    return f"{below[-1] if below else 0}+"


def _score_bin(score: float) -> str:
    return f"{min(int(score * SCORE_BINS), SCORE_BINS - 1) / SCORE_BINS:.2f}+"


def summarize(
    crawl: str,
    config: CleanConfig,
    files: list[str],
    archive_records: Counter[str],
    parts: Sequence[PartStats],
) -> dict[str, Any]:
    """The content of stats.json, without the scores against a known truth. `archive_records`: by their type."""
    rows: Counter[tuple[str, str, str]] = Counter()
    for stage, rule, outcome, count in (row for part in parts for row in part.rows):
        rows[stage, rule, outcome] += count
    outcomes: Counter[str] = Counter()
    for (_, _, outcome), count in rows.items():
        outcomes[outcome] += count
    lengths = _total(part.lengths for part in parts)
    return {
        "crawl": crawl,
        "config_hash": config.hash,
        "rules": config.rule_settings(),
        "files": files,
        "records": sum(outcomes.values()),
        **{outcome: outcomes[outcome] for outcome in ledger.OUTCOMES},
        "documents": outcomes[ledger.KEPT],
        "words": sum(part.words for part in parts),
        "characters": sum(part.characters for part in parts),
        "bytes": sum(part.bytes for part in parts),
        "funnel": _funnel(rows),
        "languages": _by_count(_total(part.languages for part in parts)),
        "other_languages": _by_count(_total(part.other_languages for part in parts)),
        "hosts": _hosts(_total(part.hosts_read for part in parts), _total(part.hosts for part in parts)),
        "language_scores": _score_histogram(
            _total(part.scores for part in parts), _total(part.other_scores for part in parts)
        ),
        "words_per_document": {f"{edge}+": lengths[f"{edge}+"] for edge in (0, *WORD_EDGES)},
        "pii_replaced": dict(sorted(_total(part.pii for part in parts).items())),
        "archive_records": dict(sorted(archive_records.items())),
    }


def _total(counts: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counts, Counter())


def _by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _hosts(read: Counter[str], kept: Counter[str]) -> dict[str, Any]:
    """How many hosts there are; records and documents of the hosts with most records, and with most documents."""

    def top(counts: Counter[str]) -> dict[str, dict[str, int]]:
        names = list(_by_count(counts))[:TOP_HOSTS]
        return {host: {"records": read[host], "kept": kept[host]} for host in names}

    return {"read": len(read), "kept": len(kept), "most_read": top(read), "most_kept": top(kept)}


def _score_histogram(kept: Counter[str], dropped: Counter[str]) -> dict[str, dict[str, int]]:
    """Pages by the certainty of their language: those kept, and those dropped for their language."""
    bins = [f"{at / SCORE_BINS:.2f}+" for at in range(SCORE_BINS)]
    return {name: {"kept": kept[name], "dropped": dropped[name]} for name in bins}


def _funnel(rows: Counter[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """One step a stage: records in, dropped, failed and left, and the reasons by count."""
    left, steps = sum(rows.values()), []
    for stage in ledger.STAGES:
        lost = {
            (rule, outcome): n
            for (s, rule, outcome), n in rows.items()
            if s == stage and outcome != ledger.KEPT
        }
        by_outcome: Counter[str] = Counter()
        for (_, outcome), count in lost.items():
            by_outcome[outcome] += count
        step = {
            "stage": stage,
            "in": left,
            "dropped": by_outcome[ledger.DROPPED],
            "failed": by_outcome[ledger.FAILED],
        }
        left -= sum(lost.values())
        reasons = _by_count(_total(Counter({rule: n}) for (rule, _), n in lost.items()))
        touched = sum(n for (s, _, outcome), n in rows.items() if s == stage and outcome == ledger.KEPT)
        steps.append(step | {"left": left, "touched": touched, "reasons": reasons})
    return steps
