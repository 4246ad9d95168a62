"""From finished units to a cleaned corpus: documents, ledger and signatures, part by part, and stats.json.

A unit holds candidates: pages that passed every step that looks at one page alone. Here the steps follow that need
all pages: duplicates, the quality classifier's cutoffs and repeats take candidates out; personal data are replaced in
what is left. The corpus appears whole, by rename.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from core.files import atomic_folder
from core.hashing import text_sha256
from corpus import ledger
from corpus.classifier import Cuts
from corpus.config import CleanConfig
from corpus.dedup.across import part_name, read_duplicates
from corpus.dedup.repeats import LEAST_WORDS, Trimmed, remove_repeats
from corpus.dedup.signatures import after_dedup, write_signatures
from corpus.engines.pool import LocalEngine
from corpus.pii import remove_pii
from corpus.stats import PartStats, count_part, summarize
from corpus.words import Words

if TYPE_CHECKING:
    from corpus.engines.engine import Engine
    from corpus.unit import UnitTask

FEW = 2_000  # documents: written in a second, as long as two workers take to start


@dataclass(frozen=True)
class PartTask:
    """What a worker needs to write one unit's part of the corpus."""

    unit: Path
    part: str  # file name
    out: Path
    config: CleanConfig
    duplicates: Path  # corpus.dedup.across.DUPLICATES_SCHEMA
    cutoffs: Cuts
    list_pii: bool


def publish(
    tasks: Sequence[UnitTask], duplicates: Path, out: Path, engine: Engine, truth: Path | None
) -> dict[str, Any]:
    """Write the corpus of these finished units to `out`; return the content of its stats.json.

    `duplicates`: the folder that drop_duplicates and find_repeats wrote. `truth`: of a built sample, to score against.
    Raises OSError, WorkerFailed, and ConservationError where a record was lost.
    """
    config, units = tasks[0].config, [task.folder for task in tasks]
    with atomic_folder(out) as partial:
        values = ("values",) if config.record_values else ()
        for kind in ("documents", "ledger", "signatures", *values):
            (partial / kind).mkdir()
        cutoffs = _cutoffs(units, duplicates, config)
        part_tasks = [
            PartTask(unit, name, partial, config, duplicates / name, cutoffs, truth is not None)
            for unit, name in zip(units, map(part_name, range(len(units))), strict=True)
        ]
        parts = _write_parts(part_tasks, LocalEngine(workers=0) if _few(units) else engine)
        described = [json.loads((unit / "unit.json").read_text()) for unit in units]
        archive_records = sum((Counter(unit["counts"]) for unit in described), Counter[str]())
        names = [task.name for task in tasks]
        stats = summarize(tasks[0].crawl, config, names, archive_records, parts)
        stats["quality_cuts"] = cutoffs.by_language
        if truth is not None:
            from corpus.truth import score_truth

            found = {record: spans for part in parts for record, spans in part.pii_found.items()}
            stats["truth"] = score_truth(truth, partial, found, config)
        (partial / "stats.json").write_text(json.dumps(stats, indent=1, ensure_ascii=False) + "\n")
        ledger.check_conservation(partial, sum(unit["rows"] for unit in described))
    return stats


def _write_parts(tasks: list[PartTask], engine: Engine) -> list[PartStats]:
    parts = dict(engine.run(write_part, tasks))
    return [parts[index] for index in range(len(tasks))]


def _few(units: Sequence[Path]) -> bool:
    """Whether writing the documents takes no longer than starting workers for it."""
    documents = 0
    for unit in units:
        documents += pq.read_metadata(unit / "documents.parquet").num_rows
        if documents > FEW:
            return False
    return True


def _cutoffs(units: list[Path], duplicates: Path, config: CleanConfig) -> Cuts:
    """The classifier's cutoffs over all documents that deduplication left."""
    scores: list[float] = []
    languages: list[str] = []
    for number, unit in enumerate(units) if config.quality_model else ():
        table = pq.read_table(unit / "documents.parquet", columns=["language", "quality"]).to_pylist()
        dropped = read_duplicates(duplicates / part_name(number))
        left = [row for at, row in enumerate(table) if at not in dropped and row["quality"] is not None]
        scores += [row["quality"] for row in left]
        languages += [row["language"] for row in left]
    return Cuts.over(scores, languages, config.quality_keep)


def write_part(task: PartTask, progress: Callable[[int], None] = lambda amount: None) -> PartStats:
    """Write one unit's documents, ledger and signatures; return what stats.json is to know of them."""
    part = _Part(task)
    part.decide_candidates()
    part.write()
    return count_part(
        part.rows, part.documents, part.word_counts, part.pii, part.pii_found if task.list_pii else {}
    )


class _Part:
    """One unit's candidates on their way to documents, and the unit's rows of the ledger."""

    def __init__(self, task: PartTask):
        self.task = task
        self.rows: list[dict[str, Any]] = pq.read_table(task.unit / "ledger.parquet").to_pylist()
        self.candidates: list[dict[str, Any]] = pq.read_table(task.unit / "documents.parquet").to_pylist()
        self.duplicates = read_duplicates(task.duplicates)
        self.documents: list[dict[str, Any]] = []
        self.word_counts: list[int] = []  # of the documents
        self.too_short: set[int] = set()  # candidates of which repeats left too little
        self.pii: Counter[str] = Counter()
        self.pii_found: dict[str, list[tuple[str, str]]] = {}

    def decide_candidates(self) -> None:
        """Drop a candidate, with its reason in its row, or add it to the documents."""
        all_trimmed = self._trimmed()
        for number, document in enumerate(self.candidates):
            row, n_words = self.rows[document.pop("row")], document.pop("n_words")
            row["quality"] = document.pop("quality")
            if number in self.duplicates:
                reason = {"detail": document["language"]} | self.duplicates[number].ledger_columns()
                _drop(row, "dedup", reason)
                continue
            trimmed = next(all_trimmed)  # of this candidate, whether the classifier drops it or not
            if not self._below_cutoff(row, document):
                self._add(number, row, document, n_words, trimmed)

    def _trimmed(self) -> Iterator[Trimmed]:
        """The candidates that are no duplicates, without what the crawl repeats."""
        texts = [each["text"] for number, each in enumerate(self.candidates) if number not in self.duplicates]
        folder, number = self.task.duplicates.parent, int(self.task.duplicates.stem)
        return iter(remove_repeats(texts, folder, number, self.task.config))

    def _below_cutoff(self, row: dict[str, Any], document: dict[str, Any]) -> bool:
        language = document["language"]
        cutoff = self.task.cutoffs.below(row["quality"], language)
        if cutoff is None:
            return False
        reason = {"rule": "quality_classifier", "value": row["quality"], "threshold": cutoff}
        _drop(row, "classifier", reason | {"detail": language})
        return True

    def _add(
        self, number: int, row: dict[str, Any], document: dict[str, Any], n_words: int, trimmed: Trimmed
    ) -> None:
        if trimmed.in_lines or trimmed.in_substrings:
            n_words = Words.of(trimmed.text).n_words
            row.update(trimmed.ledger_columns())
            if n_words < LEAST_WORDS:
                reason = {"rule": "too_little_left", "value": n_words, "threshold": LEAST_WORDS}
                _drop(row, "dedup", reason)
                self.too_short.add(number)
                return
            _set_text(document, trimmed.text)
        self._remove_pii(row, document)
        self.word_counts.append(n_words)
        self.documents.append(document)

    def _remove_pii(self, row: dict[str, Any], document: dict[str, Any]) -> None:
        kinds, language, host = self.task.config.remove_pii, document["language"], document["host"]
        text, spans = remove_pii(document["text"], kinds, language, host)
        if spans:
            self.pii_found[document["record_id"]] = spans
            self.pii.update(kind for kind, _ in spans)
            _set_text(document, text)
            row.update(stage="pii", rule="replaced", value=float(len(spans)))

    def write(self) -> None:
        """Write the part's files."""
        task = self.task
        ledger.write_parquet(self.documents, ledger.DOCUMENT_SCHEMA, task.out / "documents" / task.part)
        ledger.write_parquet(self.rows, ledger.LEDGER_SCHEMA, task.out / "ledger" / task.part)
        dropped = {number: (why.step, why.duplicate_of) for number, why in self.duplicates.items()}
        signed = pq.read_table(task.unit / "signatures.parquet")
        signed = after_dedup(signed, {**dropped, **dict.fromkeys(self.too_short, (0, None))})
        write_signatures(signed, task.out / "signatures" / task.part)
        if task.config.record_values:
            shutil.copyfile(task.unit / "values.parquet", task.out / "values" / task.part)


def _drop(row: dict[str, Any], stage: str, reason: dict[str, Any]) -> None:
    row.update(outcome=ledger.DROPPED, stage=stage)
    row.update(reason)


def _set_text(document: dict[str, Any], text: str) -> None:
    document.update(text=text, n_bytes=len(text.encode()), sha256=text_sha256(text))
