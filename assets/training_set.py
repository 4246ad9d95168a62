"""Which of the cleaned documents may be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assets.plots import bars
from assets.stage import Evidence, StageRun, stage


@stage(
    group="corpus",
    kinds={"parquet"},
    checks={"not_empty": "At least one document is left to train on."},
)
def training_set(run: StageRun) -> Evidence:
    """Looks at all crawls together, which cleaning, one crawl at a time, cannot.

    Left out are pages that an older crawl already has (crawls in the order of their names), and pages that overlap
    with an evaluation set. `ledger/` lists them, each with the reason; `matches.parquet` says which document covers
    which example of which evaluation set; `examples.parquet` is everything that was searched for.
    """
    from core.settings import read_settings
    from corpus.config import CleanConfig
    from corpus.engines.pool import default_workers
    from evals.decontamination_config import DecontaminationConfig
    from evals.training_set import build_training_set

    config = read_settings(DecontaminationConfig, run.params, "training_set")
    cleaning = CleanConfig.from_dict(run.workspace.section("cleaned_corpus"))
    corpora = run.folders("cleaned_corpus")
    summary = build_training_set(corpora, run.out, config, cleaning, run.root, default_workers())
    documents, left_out = summary["documents"], summary["left_out"]
    overlaps = summary["overlaps"]["eval_sets"]
    reasons = {"in an older crawl": sum(crawl["dropped"] for crawl in summary["crawls"].values())}
    reasons |= {name: found["documents"] for name, found in overlaps.items()}
    return Evidence(
        numbers={
            "documents": documents - left_out,
            "left_out": left_out,
            "eval_texts": sum(found["searched"] for found in overlaps.values()),
        },
        plot=bars(reasons, x="documents left out"),
        tables={"crawls": _crawl_table(summary["crawls"]), "evaluation_sets": _overlap_table(overlaps)},
        checks={"not_empty": documents > left_out},
        check_notes={"not_empty": f"{documents - left_out:,} of {documents:,} documents"},
    )


def _crawl_table(crawls: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [f"| {name} | {c['documents']:,} | {c['dropped']:,} |" for name, c in crawls.items()]
    return "\n".join(["| crawl | documents | already in an older crawl |", "|---|--:|--:|", *rows])


def _overlap_table(sets: Mapping[str, Mapping[str, int]]) -> str:
    rows = [
        f"| {name} | {s['searched']:,} | {s['too_short']:,} | {s['found']:,} | {s['documents']:,} |"
        for name, s in sets.items()
    ]
    head = "| evaluation set | texts searched | too short to search | found | documents left out |"
    return "\n".join([head, "|---|--:|--:|--:|--:|", *rows])
