"""The documents worth training on, and what happened to every other record."""

from __future__ import annotations

from dataclasses import replace

from assets.stage import Evidence, StageRun, stage


@stage(
    group="corpus",
    kinds={"parquet"},
    checks={
        "nothing_vanishes": "Records in the crawl = kept + dropped + failed in the ledger.",
        "not_empty": "At least one document was kept.",
        "no_personal_data": "No personal data of the kinds of remove_pii is left in a document.",
    },
)
def cleaned_corpus(run: StageRun) -> Evidence:
    """URL filter, text extraction, language, quality rules, duplicates, quality classifier if there is one,
    personal data: in that order.

    `documents/` holds what was kept, `ledger/` one row for every record with the rule that decided it.
    Beside the version, not in it: `reports/cleaned_corpus/CRAWL.html` shows twenty dropped pages of every rule.
    """
    from corpus.clean import CleanConfig, clean_crawl
    from corpus.ledger import check_conservation, document_dataset
    from corpus.manifest import read_manifest
    from corpus.pii import find_pii
    from corpus.report.plots import plot_contents, plot_funnel
    from corpus.report.summary import markdown

    crawl = run.folder("raw_crawl")
    files = read_manifest(crawl)
    sources = {f.file: f.path(run.root, crawl) for f in files}
    truth = crawl / "truth.parquet"
    config = CleanConfig.from_dict(run.params)
    if config.quality_model:
        config = replace(config, quality_model=str(run.root / config.quality_model))
    stats = clean_crawl(
        list(sources.items()),
        run.out,
        run.work / "units",
        config,
        crawl=run.crawl,
        truth=truth if truth.exists() else None,
        hashes={f.file: f.sha256 for f in files},
        **run.engine.settings(),
    )
    counts = check_conservation(run.out, records=sum(f.records for f in files))
    leaks = [
        row["record_id"]
        for batch in document_dataset(run.out).to_batches(columns=["record_id", "text", "language", "host"])
        for row in batch.to_pylist()
        if find_pii(row["text"], config.remove_pii, row["language"], row["host"])
    ]
    dropped_pages, report = _sample_pages(run, sources)
    return Evidence(
        numbers={**counts, "words": stats.words, "bytes": stats.bytes},
        plot=plot_funnel(stats),
        more_plots={"languages_hosts_lengths": plot_contents(stats)},
        tables={"funnel": markdown(stats), "dropped_pages": dropped_pages},
        files={"report": report},
        checks={
            "nothing_vanishes": counts["records"] == counts["kept"] + counts["dropped"] + counts["failed"],
            "not_empty": counts["kept"] > 0,
            "no_personal_data": not leaks,
        },
        check_notes={
            "nothing_vanishes": ", ".join(f"{name} {n:,}" for name, n in counts.items()),
            "not_empty": f"{counts['kept']:,} documents",
            "no_personal_data": f"{len(leaks):,} documents with personal data left {leaks[:3] or ''}",
        },
    )


def _sample_pages(run: StageRun, sources: dict[str, str]) -> tuple[str, str]:
    """The sampled pages as Markdown, and the path of the HTML report. A report that cannot be written is a warning: the
    corpus is good without it."""
    from corpus.report.html_page import REPORTS, write_report
    from corpus.report.samples import draw
    from corpus.report.summary import samples_markdown

    path, drawn = REPORTS / f"{run.crawl}.html", draw(run.out)
    try:
        write_report(run.out, sources, run.root / path, drawn=drawn)
    except (OSError, RuntimeError) as error:
        run.context.log.warning(
            "%s was not written: %s Fix that and write it with: stemma corpus report %s",
            path,
            error,
            run.crawl,
        )
    return samples_markdown(drawn[0]), str(path)
