"""Which of the cleaned documents may be trained on."""

from __future__ import annotations

from dataclasses import asdict

from assets.plots import bars
from assets.stage import Evidence, StageRun, stage


@stage(
    group="corpus",
    kinds={"parquet"},
    checks={"not_empty": "At least one document is left to train on."},
)
def training_set(run: StageRun) -> Evidence:
    """Looks over all crawls together, which cleaning, one crawl at a time, cannot.

    Pages that an older crawl has already (crawls in order of their names), and pages that would give an evaluation
    away. `ledger/` names them, each with the reason; `matches.parquet` which document covers which example of which
    evaluation set; `examples.parquet` everything that was looked for.
    """
    from core.files import write_json
    from core.settings import read_settings
    from corpus.config import CleanConfig
    from corpus.dedup.across import find_across
    from corpus.engines.pool import default_workers
    from evals.contamination import DecontaminationConfig, leave_out
    from evals.sets import examples
    from model.data.documents import left_out

    config = read_settings(DecontaminationConfig, run.params, "training_set")
    corpora = sorted(run.inputs["cleaned_corpus"], key=lambda folder: folder.name)
    cleaning = CleanConfig.from_dict(run.context.resources.workspace.section("cleaned_corpus"))
    across = find_across([(folder.name, folder) for folder in corpora], run.out, cleaning)
    (run.out / "stats.json").unlink()
    wanted = list(examples(config.eval_sets, run.root))
    overlaps = leave_out(corpora, wanted, config, run.out, default_workers())
    documents, gone = across["documents"], len(left_out(run.out))
    write_json(run.out / "config.json", asdict(config))
    write_json(
        run.out / "summary.json",
        {"documents": documents, "left_out": gone, "crawls": across["crawls"], "overlaps": overlaps},
    )
    reasons = {"in an older crawl": across["dropped"]}
    reasons |= {name: found["documents"] for name, found in overlaps["eval_sets"].items()}
    return Evidence(
        numbers={
            "documents": documents - gone,
            "left_out": gone,
            "eval_texts": sum(found["searched"] for found in overlaps["eval_sets"].values()),
        },
        plot=bars(reasons, x="documents left out"),
        tables={"crawls": _crawl_table(across["crawls"]), "evaluation_sets": _table(overlaps["eval_sets"])},
        checks={"not_empty": documents > gone},
        check_notes={"not_empty": f"{documents - gone:,} of {documents:,} documents"},
    )


def _crawl_table(crawls) -> str:
    rows = [f"| {name} | {c['documents']:,} | {c['dropped']:,} |" for name, c in crawls.items()]
    return "\n".join(["| crawl | documents | in an older crawl already |", "|---|--:|--:|", *rows])


def _table(sets) -> str:
    rows = [
        f"| {name} | {s['searched']:,} | {s['too_short']:,} | {s['found']:,} | {s['documents']:,} |"
        for name, s in sets.items()
    ]
    head = "| evaluation set | texts searched | too short to search | found | documents left out |"
    return "\n".join([head, "|---|--:|--:|--:|--:|", *rows])
