"""Commands about a cleaned corpus, and cleaning without the chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from commands.terminal import ROOT, Json, app, corpus_app, out
from core.errors import ConfigError, MissingError


@app.command()
def clean(
    files: Annotated[list[str], typer.Argument(metavar="WARC…", help="WARC, ARC or WET files, or globs.")],
    out_dir: Annotated[
        Path,
        typer.Option(
            "--out", help="Folder for documents/, ledger/, signatures/, stats.json and report.html."
        ),
    ],
    languages: Annotated[
        str, typer.Option(help="Languages to keep, separated by commas; empty keeps all.")
    ] = "en",
    profile: Annotated[
        str, typer.Option(help="Extraction: fast, or faithful to FineWeb (trafilatura, four times slower).")
    ] = "fast",
    workers: Annotated[int | None, typer.Option(help="Processes (default: one per core).")] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="An older cleaned corpus, whose pages are dropped here; oldest first, repeatable."),
    ] = None,
    engine: Annotated[str, typer.Option(help="Where the work runs: local, ray or slurm.")] = "local",
    quality_model: Annotated[
        str, typer.Option(help="A quality classifier of 'stemma corpus train-classifier'.")
    ] = "",
    quality_keep: Annotated[float, typer.Option(help="Share of each language that it keeps.")] = 0.1,
    all_values: Annotated[
        bool, typer.Option("--all-values", help="Keep every rule's value, for corpus simulate.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Clean crawl files into text, without the chain: no Dagster, no DVC, files in and files out."""
    from corpus.clean import CleanConfig, clean_crawl
    from corpus.report.html_page import write_report
    from corpus.report.summary import print_funnel
    from corpus.sources.warc_files import find_files

    if out_dir.exists() and any(out_dir.iterdir()):
        raise ConfigError(f"{out_dir} is not empty. Name a new folder, so that nothing is overwritten.")
    pairs = [(name, path) for path, name in find_files(out_dir.name, files, Path.cwd())]
    config = CleanConfig(
        languages=tuple(word for word in languages.split(",") if word),
        profile=profile,
        record_values=all_values,
        quality_model=quality_model,
        quality_keep=quality_keep,
    )
    work = out_dir.parent / f".{out_dir.name}.work"  # finished units, found again if this is interrupted
    stats = clean_crawl(
        pairs,
        out_dir,
        work,
        config,
        crawl=out_dir.name,
        workers=workers,
        against=against or (),
        engine=engine,
    )
    shutil.rmtree(work)
    write_report(out_dir, dict(pairs), out_dir / "report.html")
    if as_json:
        print((out_dir / "stats.json").read_text())
    else:
        print_funnel(stats, out)
        out.print(f"\ndocuments, ledger and numbers: {out_dir}\nreport: {out_dir / 'report.html'}")


@corpus_app.command("report")
def corpus_report(
    crawl: Annotated[str | None, typer.Argument(help="A crawl of params.yaml (default: every one).")] = None,
) -> None:
    """Write what happened to a crawl as one HTML page: the funnel, hosts, languages, twenty dropped pages per rule."""
    from corpus.report.html_page import report_of

    cleaned = ROOT / "data" / "cleaned_corpus"
    names = [crawl] if crawl else sorted(path.parent.name for path in cleaned.glob("*/stats.json"))
    if not names:
        raise MissingError("No crawl is cleaned yet. Clean one: stemma materialize cleaned_corpus")
    for name in names:
        out.print(str(report_of(ROOT, name)), soft_wrap=True)


@corpus_app.command()
def simulate(
    rule: Annotated[str, typer.Option(help="A rule of docs/rules.md, or language_score.")],
    threshold: Annotated[str, typer.Option(help="The threshold to try: a number, or 'off'.")],
    crawl: Annotated[
        list[str] | None,
        typer.Option(help="A crawl, or the folder of a cleaned corpus (default: all crawls)."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Try it for this language only, e.g. de.")] = None,
    examples: Annotated[int, typer.Option(help="Pages to show of each kind of change.")] = 5,
    as_json: Json = False,
) -> None:
    """Report how many documents another threshold would change, from the ledger alone: no crawl is read again."""
    from corpus.rules.simulate import print_simulation
    from corpus.rules.simulate import simulate as ask

    try:
        limit = None if threshold == "off" else float(threshold)
    except ValueError:
        raise ConfigError(f"--threshold {threshold}: give a number, or 'off'.") from None
    corpora = ROOT / "data" / "cleaned_corpus"
    names = crawl or sorted(path.name for path in corpora.glob("*") if (path / "ledger").is_dir())
    folders = [Path(name) if Path(name).is_dir() else corpora / name for name in names]
    if not folders:
        raise MissingError("No crawl is cleaned yet. Clean one: stemma materialize cleaned_corpus")
    found = ask(folders, rule, limit, language, examples)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        print_simulation(found, out)


@corpus_app.command("train-classifier")
def train_classifier(
    positives: Annotated[
        list[str],
        typer.Option(
            help="Good text: JSON lines, Parquet or text files, a cleaned corpus, or patterns; repeatable."
        ),
    ],
    corpus: Annotated[
        list[Path], typer.Option(help="Cleaned corpus to draw the negatives from; repeatable.")
    ],
    out_file: Annotated[
        Path, typer.Option("--out", help="The model: a safetensors file; its numbers beside it.")
    ],
    seed: Annotated[int, typer.Option(help="Another seed draws other documents.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a quality classifier from examples of good text; cleaned_corpus.quality_model names it."""
    from corpus.train_classifier import train

    report = train(positives, corpus, out_file, seed=seed)
    if as_json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return
    held = report["held_out"]
    out.print(
        f"{out_file}: {sum(report['positives'].values()):,} positives, {sum(report['negatives'].values()):,} "
        f"negatives; of {held['positives'] + held['negatives']:,} held out, area under the curve "
        f"{held['auc']:.3f}, accuracy {held['accuracy']:.3f}"
    )
