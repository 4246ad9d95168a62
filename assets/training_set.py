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
    """Looks over all crawls together, which cleaning, one crawl at a time, cannot: what would give evaluations away.

    `ledger/` names the documents that training leaves out, each with the reason; `matches.parquet` which document
    covers which example of which evaluation set; `examples.parquet` everything that was looked for.
    """
    from corpus.engines.pool import default_workers
    from evals.contamination import DecontaminationConfig, leave_out
    from evals.sets import examples
    from model.documents import document_files, left_out
    from model.run_log import settings, write_json

    config = settings(DecontaminationConfig, run.params, "training_set")
    corpora = run.inputs["cleaned_corpus"]
    wanted = list(examples(config.eval_sets, run.root))
    summary = leave_out(corpora, wanted, config, run.out, default_workers())
    documents = _rows(document_files(corpora))
    gone = len(left_out(run.out))
    write_json(run.out / "config.json", asdict(config))
    write_json(run.out / "summary.json", {"documents": documents, "left_out": gone, "overlaps": summary})
    return Evidence(
        numbers={
            "documents": documents - gone,
            "left_out": gone,
            "eval_texts": sum(s["searched"] for s in summary["eval_sets"].values()),
        },
        plot=bars({name: s["documents"] for name, s in summary["eval_sets"].items()}, x="documents left out"),
        tables={"evaluation_sets": _table(summary["eval_sets"])},
        checks={"not_empty": documents > gone},
        check_notes={"not_empty": f"{documents - gone:,} of {documents:,} documents"},
    )


def _rows(files) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(file).num_rows for file in files)


def _table(sets) -> str:
    rows = [
        f"| {name} | {s['searched']:,} | {s['too_short']:,} | {s['found']:,} | {s['documents']:,} |"
        for name, s in sets.items()
    ]
    head = "| evaluation set | texts searched | too short to search | found | documents left out |"
    return "\n".join([head, "|---|--:|--:|--:|--:|", *rows])
