"""A crawl becomes a corpus: units in a process pool, duplicates over all of them, documents and ledger published.

    clean_crawl([("a.warc.gz", path), …], out, work, CleanConfig(), crawl="news")
    python -m corpus WARC… --out DIR --languages en

The result is the same bytes whatever the number of workers, the order of the files and the number of attempts:
units are functions of (file, settings, code), deduplication sees them sorted by name, and nothing that differs from
run to run is written. `work` holds finished units; `out` appears (or is replaced) whole, by rename.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import RunError
from core.progress import progress_bar
from corpus.classifier import load_classifier
from corpus.config import CleanConfig
from corpus.dedup.across import drop_duplicates, part_name, read_duplicates, read_older_crawl
from corpus.dedup.repeats import find_repeats
from corpus.engines.choose import choose_engine
from corpus.engines.engine import WorkerFailed
from corpus.limits import note_death
from corpus.publish import publish
from corpus.stats import CleanStats
from corpus.stream import hash_archive
from corpus.unit import UnitTask, clean_unit
from corpus.unit_key import unit_key

if TYPE_CHECKING:
    from corpus.engines.engine import Engine

__all__ = ["CleanConfig", "CleanStats", "CleaningFailed", "TooManyFailures", "clean_crawl"]


class CleaningFailed(RunError):
    """The corpus could not be made; the message says why and what to do."""


class TooManyFailures(CleaningFailed):
    """More records were unreadable than max_failure_rate allows."""


def clean_crawl(
    files: Sequence[tuple[str, str | Path]],
    out: Path,
    work: Path,
    config: CleanConfig | None = None,
    crawl: str = "crawl",
    workers: int | None = None,
    truth: Path | None = None,
    hashes: Mapping[str, str] | None = None,
    against: Sequence[Path] = (),
    engine: str | Engine = "local",
) -> CleanStats:
    """Clean the files of a crawl into out/documents, out/ledger, out/signatures and out/stats.json.

    `files`: (name, path or URL), names distinct. `work`: folder of finished units, may be shared by runs. `workers`:
    processes, default one a core, 0 for none. `truth`: truth.parquet of a built sample, to score against.
    `hashes`: SHA-256 of files by name where known (a manifest has them), which saves reading them twice.
    `against`: cleaned corpora of older crawls, oldest first; what they hold is dropped here as duplicate.
    `engine`: where the units run, "local", "ray" or "slurm" (docs/engines.md); it changes no byte.
    Raises CleaningFailed with a sentence; TooManyFailures only after `out` is written, so that it can be inspected.
    """
    started, out, work, config = time.monotonic(), Path(out), Path(work), config or CleanConfig()
    _check_names(files, crawl)
    if config.quality_model:
        load_classifier(config.quality_model)  # raises at once where it cannot be used
    engine = choose_engine(engine, work, workers)
    _check_writable(out, work)
    older = [read_older_crawl(folder, config) for folder in against]
    try:
        known = hashes or {}
        tasks = []
        for name, source in sorted((name, str(source)) for name, source in files):
            key = unit_key(name, crawl, known.get(name) or hash_archive(source)[1], config, work)
            tasks.append(UnitTask(name, source, crawl, work / "units" / key, config, engine.isolated))
        units = _clean_units(tasks, engine)
        duplicates = out.with_name(out.name + ".dedup")
        drop_duplicates(units, config, duplicates, older)
        if config.dedup_lines or config.dedup_substrings:
            dropped = [set(read_duplicates(duplicates / part_name(n))) for n in range(len(units))]
            find_repeats(units, dropped, config, duplicates)
        stats = publish(tasks, duplicates, out, engine, truth)
        shutil.rmtree(duplicates)
    except (OSError, WorkerFailed) as error:
        raise CleaningFailed(f"Cleaning crawl '{crawl}' stopped: {_reason(error, out)}") from error
    finally:
        engine.close()
    _check_failure_rate(stats, config, out)
    return CleanStats(stats, time.monotonic() - started)


def _check_names(files: Sequence[tuple[str, str | Path]], crawl: str) -> None:
    counts = Counter(name for name, _ in files)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise CleaningFailed(
            f"These names stand for more than one file: {', '.join(repeated)}. Give each file a name of its own."
        )
    if not files:
        raise CleaningFailed(
            f"There is no file to clean for crawl '{crawl}'. Check the paths or the pattern."
        )


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


def _clean_units(tasks: list[UnitTask], engine: Engine) -> list[Path]:
    """The folders of all units, those that were not there cleaned."""
    pending = [task for task in tasks if not (task.folder / "unit.json").is_file()]
    sizes = {task.folder: _size(task.source) for task in tasks}
    done = sum(sizes.values()) - sum(sizes[task.folder] for task in pending)
    bar = progress_bar(
        sum(sizes.values()),
        f"cleaning {len(tasks)} files",
        "B",
        initial=done,
        unit_scale=True,
        disable=not pending,
    )
    with bar:
        for index, _ in engine.run(clean_unit, pending, bar.update, note_death):
            bar.set_postfix_str(pending[index].name[-32:], refresh=False)
    return [task.folder for task in tasks]


def _size(source: str) -> int:
    return os.path.getsize(source) if os.path.exists(source) else 0


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
