"""The unit of work: one archive file in, its ledger, its candidate documents and their signatures out.

A pure function of the file's bytes, the settings and this room's code. A unit is written beside its place and
renamed onto it when whole, so a re-run takes up what is finished. A page that kills or hangs the parser kills only
its worker: the place where it stood is on disk, and the next worker steps over it.
"""

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

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
    """What a worker needs to clean one file. `folder` is where the finished unit will stand."""

    name: str
    source: str
    crawl: str
    folder: Path
    config: CleanConfig
    limited: bool = True  # hold each page to its time and memory; off in the caller's own process


@dataclass(slots=True)
class Ended:
    """Where a record ended: the ledger's columns that say so."""

    outcome: str
    stage: str | None = None
    rule: str | None = None
    value: float | None = None
    threshold: float | None = None
    detail: str | None = None
    values: dict | None = None  # every rule's, where they are recorded


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
    rows: list[dict] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    values: list[dict] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)


def partial_folder(task: UnitTask) -> Path:
    """Where the unit is written until it is whole."""
    return task.folder.with_name(task.folder.name + ".partial")


def clean_unit(task: UnitTask, progress: Callable[[int], None] = lambda amount: None) -> Path:
    """Clean one file into task.folder (unless it stands there already) and return the folder."""
    if (task.folder / "unit.json").is_file():
        return task.folder
    partial = partial_folder(task)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    unit = _read_all(task, progress)
    _write(task, unit, partial)
    shutil.rmtree(task.folder, ignore_errors=True)
    partial.rename(task.folder)
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
            ended, candidate = _judge(record, number, watch, config, urls)
            if candidate:
                candidate.row = len(unit.rows)
                unit.candidates.append(candidate)
            if ended.values:
                unit.values.append({"row": len(unit.rows), **ended.values})
            unit.rows.append(ledger_row(record, ended, task))
            if number % PROGRESS_EVERY == 0:
                progress(max(0, record.warc_offset - reached))
                reached = max(reached, record.warc_offset)
    return unit


def _judge(
    record: Record | BrokenRecord, number: int, watch: Watch, config: CleanConfig, urls: UrlFilter
) -> tuple[Ended, Candidate | None]:
    """judge_record within the limits of a record."""
    rule = watch.given_up(number)
    if rule:
        return _given_up(rule, config), None
    watch.begin(number)
    try:
        ended, candidate = judge_record(record, config, urls)
    except MemoryError:
        ended, candidate = _given_up("memory", config), None
    # trafilatura takes an error of its parser for a page without text.
    suspect = ended.rule == "parser_error" or (ended.rule == "no_main_text" and config.profile == "faithful")
    if suspect and ((ended.detail or "").startswith("MemoryError") or watch.exhausted()):
        ended = _given_up("memory", config)
    watch.end()
    return ended, candidate


def _given_up(rule: str, config: CleanConfig) -> Ended:
    allowed = {"cpu_time": float(config.page_cpu_seconds), "memory": float(config.page_memory_mb)}.get(rule)
    return Ended(ledger.FAILED, "extraction", rule, allowed, allowed, DETAILS[rule])


def judge_record(
    record: Record | BrokenRecord, config: CleanConfig, urls: UrlFilter
) -> tuple[Ended, Candidate | None]:
    """Take one record through every step that needs no other record."""
    if isinstance(record, BrokenRecord):
        return Ended(ledger.FAILED, "read", record.rule, detail=record.detail), None
    ended = not_a_page(record, config)
    if ended:
        return ended, None
    rejected = urls.reject(record.url)
    # An HTML page is one under whatever name it was archived; DNS answers and crawl logs are not.
    if rejected and not (rejected[0] == "not_a_web_address" and record.kind == "html"):
        return Ended(ledger.DROPPED, "url", rejected[0], detail=rejected[1]), None
    try:
        ended = _foreign(record, config)
        if ended:
            return ended, None
        page = _main_text(record, config)
    except Exception as error:  # the parser's own; the record is kept in the ledger as failed
        return Ended(
            ledger.FAILED, "extraction", "parser_error", detail=f"{type(error).__name__}: {error}"[:200]
        ), None
    if not page.text:
        return Ended(ledger.DROPPED, "extraction", "no_main_text", 0.0, 1.0), None
    if len(page.text) > config.max_text_chars:
        size, limit = float(len(page.text)), float(config.max_text_chars)
        return Ended(ledger.DROPPED, "extraction", "too_long", size, limit), None
    return _judge_text(record, page, config)


def not_a_page(record: Record, config: CleanConfig) -> Ended | None:
    """Why a readable record has no page to extract, or None."""
    if record.kind == "revisit":
        return Ended(ledger.DROPPED, "read", "revisit", detail="its page stands in another record")
    if record.status is not None and record.status != 200:
        return Ended(ledger.DROPPED, "read", "http_status", float(record.status), 200.0)
    if record.kind not in ("html", "text"):
        return Ended(ledger.DROPPED, "read", "not_text", detail=record.content_type[:80] or None)
    if not record.payload.strip():
        return Ended(ledger.DROPPED, "read", "empty", 0.0, 1.0)
    if len(record.payload) > config.max_page_bytes:
        return Ended(
            ledger.DROPPED, "read", "too_large", float(len(record.payload)), float(config.max_page_bytes)
        )
    return None


def _foreign(record: Record, config: CleanConfig) -> Ended | None:
    """A page that is plainly in a language nobody asked for is not worth reading closely: neither parsing, where its
    raw paragraphs say so, nor trafilatura, where the fast profile's text does."""
    if record.kind != "html" or not config.languages or config.first_look is None:
        return None
    language, score = first_look(record.payload, record.http_charset)
    if config.profile == "faithful" and (language == "und" or score < config.first_look):
        language, score = identify(extract_page(record.payload, record.http_charset).text)
    if language in ("und", *config.languages) or score < config.first_look:
        return None
    return Ended(ledger.DROPPED, "language", "other_language", score, None, language)


def _main_text(record: Record, config: CleanConfig) -> MainText:
    if record.kind == "html":
        return extract_page(record.payload, record.http_charset, config.profile)
    return plain_text(record.payload, record.http_charset)


def _judge_text(record: Record, page: MainText, config: CleanConfig) -> tuple[Ended, Candidate | None]:
    language, score = identify(page.text)
    if config.languages and language not in config.languages:
        return Ended(ledger.DROPPED, "language", "other_language", score, None, language), None
    certain = score >= config.language_score
    values, limits = None, limits_of(config, language)
    if certain or config.record_values:
        words = Words.of(page.text, page.title is not None)
    if config.record_values:
        values = measure_all(words, limits, language, score)
    if not certain:
        about = (score, config.language_score, language, values)
        return Ended(ledger.DROPPED, "language", "uncertain_language", *about), None
    verdict = judge(words, limits)
    if isinstance(verdict, Verdict):
        about = (verdict.rule, verdict.value, verdict.threshold, language, values)
        return Ended(ledger.DROPPED, "quality", *about), None
    return Ended(ledger.KEPT, values=values), Candidate(record, 0, verdict.compact(), language, score)


def ledger_row(record: Record | BrokenRecord, ended: Ended, task: UnitTask) -> dict:
    """One row of LEDGER_SCHEMA."""
    return {
        "record_id": record.record_id,
        "url": record.url,
        "host": host_of(record.url),
        "crawl": task.crawl,
        "warc_file": task.name,
        "warc_offset": record.warc_offset,
        "warc_length": record.warc_length,
        "outcome": ended.outcome,
        "stage": ended.stage,
        "rule": ended.rule,
        "value": ended.value,
        "threshold": ended.threshold,
        "detail": ended.detail,
        "duplicate_of": None,
        "config_hash": task.config.hash,
        "quality": None,
    }


def document_row(candidate: Candidate, task: UnitTask) -> dict:
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
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
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
