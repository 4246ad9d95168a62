"""Which documents of the cleaned corpora may be trained on, looked at over all crawls together.

Left out are pages that an older crawl has already (crawls in the order of their names) and pages that would give an
evaluation away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.files import write_json
from corpus.config import CleanConfig
from corpus.dedup.across import find_across
from evals.contamination import exclude_overlaps
from evals.decontamination_config import DecontaminationConfig
from evals.sets import examples
from model.data.documents import left_out


def build_training_set(
    corpora: Sequence[Path],
    out: Path,
    config: DecontaminationConfig,
    cleaning: CleanConfig,
    root: Path,
    workers: int,
) -> dict[str, Any]:
    """Write out/ledger/ (the documents left out, each with its reason), out/matches.parquet (which document covers
    which example of which evaluation set), out/examples.parquet (everything that was searched for), out/config.json
    and out/summary.json; return the summary: documents, left_out, crawls, overlaps.

    corpora: folders of cleaned corpora. cleaning: the settings that they were cleaned with. root: what paths of
    evaluation sets are relative to. workers: processes, 0 for none. Raises ConfigError for an evaluation set that
    cannot be read, MissingError or ConfigError for corpora without signatures or with those of other settings.
    """
    folders = sorted(corpora, key=lambda folder: folder.name)
    duplicates = find_across([(folder.name, folder) for folder in folders], out, cleaning)
    (out / "stats.json").unlink()
    wanted = list(examples(config.eval_sets, root))
    overlaps = exclude_overlaps(folders, wanted, config, out, workers)
    summary = {
        "documents": duplicates["documents"],
        "left_out": len(left_out(out)),
        "crawls": duplicates["crawls"],
        "overlaps": overlaps,
    }
    write_json(out / "config.json", asdict(config))
    write_json(out / "summary.json", summary)
    return summary
