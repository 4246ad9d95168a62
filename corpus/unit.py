"""The unit of work: one archive file in; its ledger, its candidate documents and their signatures out.

A pure function of the file's bytes, the settings and the code. A unit's folder appears whole, by rename, so a later
run reuses what is finished. A page that kills or hangs the parser kills only its worker: the number of the record
being processed is on disk, and the next worker skips it.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.files import atomic_folder
from core.hashing import text_sha256
from corpus import ledger
from corpus.classifier import score_document
from corpus.config import CleanConfig
from corpus.dedup.signatures import sign, write_signatures
from corpus.extraction.extract import MainText, extract_page, plain_text
from corpus.language import first_look, identify
from corpus.limits import DETAILS, Watch, at_file, crash_file
from corpus.rules.quality import Verdict, judge, limits_of
from corpus.rules.values import VALUES_SCHEMA, measure_all
from corpus.urls import UrlFilter, host_of
from corpus.warc import BrokenRecord, Record, read_records
from corpus.words import Words

CANDIDATE_SCHEMA = pa.schema(
    [
        *ledger.DOCUMENT_SCHEMA,
        pa.field("n_words", pa.int64()),
        pa.field("row", pa.int64()),  # its row in the unit's ledger
        pa.field("quality", pa.float64()),  # by the quality classifier, where there is one
    ]
)
PROGRESS_EVERY = 50  # records


@dataclass(frozen=True)
class UnitTask:
    """What a worker needs to clean one file. `folder`: of the finished unit."""

    name: str
    source: str
    crawl: str
    folder: Path
    config: CleanConfig
    limited: bool = True  # limit each page's time and memory; off in the caller's own process


@dataclass(slots=True)
class Outcome:
    """What became of a record: the columns of the ledger that say so."""

    outcome: str
    stage: str | None = None
    rule: str | None = None
    value: float | None = None
    threshold: float | None = None
    detail: str | None = None
    values: dict[str, Any] | None = None  # of every rule, where they are recorded


@dataclass(slots=True)
class Candidate:
    """A page that passed everything but deduplication."""

    record: Record
    row: int
    words: Words
    language: str
    score: float


@dataclass
class _Unit:
    rows: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def clean_unit(task: UnitTask, progress: Callable[[int], None] = lambda amount: None) -> Path:
    """Clean one file into task.folder (unless it is there already) and return the folder."""
    if (task.folder / "unit.json").is_file():
        return task.folder
    with atomic_folder(task.folder) as partial:
        _write(task, _read_all(task, progress), partial)
    for file in (at_file(task.folder), crash_file(task.folder)):
        file.unlink(missing_ok=True)
    return task.folder


def _read_all(task: UnitTask, progress: Callable[[int], None]) -> _Unit:
    unit, reached = _Unit(), 0
    config = task.config
    urls = UrlFilter(config.blocked_domains, config.blocked_words, config.suspect_words)
    watch = Watch(task.folder, config.page_cpu_seconds, config.page_memory_mb, task.limited)
    with contextlib.closing(watch):
        for number, record in enumerate(read_records(task.source, task.name, unit.counts)):
            outcome, candidate = _judge(record, number, watch, config, urls)
            if candidate:
                candidate.row = len(unit.rows)
                unit.candidates.append(candidate)
            if outcome.values:
                unit.values.append({"row": len(unit.rows), **outcome.values})
            unit.rows.append(ledger_row(record, outcome, task))
            if number % PROGRESS_EVERY == 0:
                progress(max(0, record.warc_offset - reached))
                reached = max(reached, record.warc_offset)
    return unit


def _judge(
    record: Record | BrokenRecord, number: int, watch: Watch, config: CleanConfig, urls: UrlFilter
) -> tuple[Outcome, Candidate | None]:
    """judge_record, limited in time and memory."""
    rule = watch.given_up(number)
    if rule:
        return _given_up(rule, config), None
    watch.begin(number)
    try:
        outcome, candidate = judge_record(record, config, urls)
    except MemoryError:
        outcome, candidate = _given_up("memory", config), None
    # trafilatura reports a page whose parser raised as one without text.
    faithful = config.profile == "faithful"
    suspect = outcome.rule == "parser_error" or (outcome.rule == "no_main_text" and faithful)
    if suspect and ((outcome.detail or "").startswith("MemoryError") or watch.exhausted()):
        outcome = _given_up("memory", config)
    watch.end()
    return outcome, candidate


def _given_up(rule: str, config: CleanConfig) -> Outcome:
    allowed = {"cpu_time": float(config.page_cpu_seconds), "memory": float(config.page_memory_mb)}.get(rule)
    return Outcome(ledger.FAILED, "extraction", rule, allowed, allowed, DETAILS[rule])


def judge_record(
    record: Record | BrokenRecord, config: CleanConfig, urls: UrlFilter
) -> tuple[Outcome, Candidate | None]:
    """Apply every step that needs no other record."""
    if isinstance(record, BrokenRecord):
        return Outcome(ledger.FAILED, "read", record.rule, detail=record.detail), None
    outcome = not_a_page(record, config)
    if outcome:
        return outcome, None
    rejected = urls.reject(record.url)
    # HTML counts as a page whatever its URL's scheme; DNS answers and crawl logs do not.
    if rejected and not (rejected[0] == "not_a_web_address" and record.kind == "html"):
        return Outcome(ledger.DROPPED, "url", rejected[0], detail=rejected[1]), None
    try:
        outcome = _unwanted_language(record, config)
        if outcome:
            return outcome, None
        page = _main_text(record, config)
    except Exception as error:  # of the parser; the ledger has the record as failed
        return Outcome(
            ledger.FAILED, "extraction", "parser_error", detail=f"{type(error).__name__}: {error}"[:200]
        ), None
    if not page.text:
        return Outcome(ledger.DROPPED, "extraction", "no_main_text", 0.0, 1.0), None
    if len(page.text) > config.max_text_chars:
        size, limit = float(len(page.text)), float(config.max_text_chars)
        return Outcome(ledger.DROPPED, "extraction", "too_long", size, limit), None
    return _judge_text(record, page, config)


def not_a_page(record: Record, config: CleanConfig) -> Outcome | None:
    """Why a readable record has no page to extract, or None."""
    if record.kind == "revisit":
        return Outcome(ledger.DROPPED, "read", "revisit", detail="its page stands in another record")
    if record.status is not None and record.status != 200:
        return Outcome(ledger.DROPPED, "read", "http_status", float(record.status), 200.0)
    if record.kind not in ("html", "text"):
        return Outcome(ledger.DROPPED, "read", "not_text", detail=record.content_type[:80] or None)
    if not record.payload.strip():
        return Outcome(ledger.DROPPED, "read", "empty", 0.0, 1.0)
    if len(record.payload) > config.max_page_bytes:
        return Outcome(
            ledger.DROPPED, "read", "too_large", float(len(record.payload)), float(config.max_page_bytes)
        )
    return None


def _unwanted_language(record: Record, config: CleanConfig) -> Outcome | None:
    """Drop a page that is clearly in an unwanted language before the expensive steps: before parsing, where its raw
    paragraphs show it, and before trafilatura, where the fast profile's text does."""
    if record.kind != "html" or not config.languages or config.first_look is None:
        return None
    language, score = first_look(record.payload, record.http_charset)
    if config.profile == "faithful" and (language == "und" or score < config.first_look):
        language, score = identify(extract_page(record.payload, record.http_charset).text)
    if language in ("und", *config.languages) or score < config.first_look:
        return None
    return Outcome(ledger.DROPPED, "language", "other_language", score, None, language)


def _main_text(record: Record, config: CleanConfig) -> MainText:
    if record.kind == "html":
        return extract_page(record.payload, record.http_charset, config.profile)
    return plain_text(record.payload, record.http_charset)


def _judge_text(record: Record, page: MainText, config: CleanConfig) -> tuple[Outcome, Candidate | None]:
    language, score = identify(page.text)
    if config.languages and language not in config.languages:
        return Outcome(ledger.DROPPED, "language", "other_language", score, None, language), None
    certain = score >= config.language_score
    values, limits = None, limits_of(config, language)
    if certain or config.record_values:
        words = Words.of(page.text, page.title is not None)
    if config.record_values:
        values = measure_all(words, limits, language, score)
    if not certain:
        limit = config.language_score
        return (
            Outcome(ledger.DROPPED, "language", "uncertain_language", score, limit, language, values),
            None,
        )
    verdict = judge(words, limits)
    if isinstance(verdict, Verdict):
        rule, value, limit = verdict.rule, verdict.value, verdict.threshold
        return Outcome(ledger.DROPPED, "quality", rule, value, limit, language, values), None
    return Outcome(ledger.KEPT, values=values), Candidate(record, 0, verdict.compact(), language, score)


def ledger_row(record: Record | BrokenRecord, outcome: Outcome, task: UnitTask) -> dict[str, Any]:
    """One row of LEDGER_SCHEMA."""
    return {
        "record_id": record.record_id,
        "url": record.url,
        "host": host_of(record.url),
        "crawl": task.crawl,
        "warc_file": task.name,
        "warc_offset": record.warc_offset,
        "warc_length": record.warc_length,
        "outcome": outcome.outcome,
        "stage": outcome.stage,
        "rule": outcome.rule,
        "value": outcome.value,
        "threshold": outcome.threshold,
        "detail": outcome.detail,
        "duplicate_of": None,
        "config_hash": task.config.hash,
        "quality": None,
    }


def document_row(candidate: Candidate, task: UnitTask) -> dict[str, Any]:
    """One row of CANDIDATE_SCHEMA."""
    record, text = candidate.record, candidate.words.text
    return {
        "record_id": record.record_id,
        "url": record.url,
        "host": host_of(record.url),
        "crawl": task.crawl,
        "date": record.date,
        "language": candidate.language,
        "language_score": candidate.score,
        "text": text,
        "n_bytes": len(text.encode()),
        "sha256": text_sha256(text),
        "n_words": candidate.words.n_words,
        "row": candidate.row,
        "quality": score_document(text, candidate.language, task.config.quality_model),
    }


def _write(task: UnitTask, unit: _Unit, partial: Path) -> None:
    ledger.write_parquet(unit.rows, ledger.LEDGER_SCHEMA, partial / "ledger.parquet")
    if task.config.record_values:
        ledger.write_parquet(unit.values, VALUES_SCHEMA, partial / "values.parquet")
    documents = [document_row(c, task) for c in unit.candidates]
    ledger.write_parquet(documents, CANDIDATE_SCHEMA, partial / "documents.parquet")
    signed = sign([(c.record.record_id, c.record.url, c.words) for c in unit.candidates], task.config)
    write_signatures(signed, partial / "signatures.parquet")
    about = {"name": task.name, "rows": len(unit.rows), "counts": dict(sorted(unit.counts.items()))}
    (partial / "unit.json").write_text(json.dumps(about))
