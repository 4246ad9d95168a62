"""The command line: each command calls one function of a package, imported when it is called."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from core.errors import ConfigError, MissingError, StemmaError, WorkspaceError
from core.files import write_atomically

ROOT = Path(__file__).resolve().parent
FAILED, DISAGREES, NOT_FOUND, STOPPED = 1, 2, 3, 130  # exit codes beside 0


class Commands(TyperGroup):
    """Shows an error that the user can fix as one sentence and exit code 1; a bug keeps its traceback."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            console.print("\nStopped. Nothing half-written is left; the same command continues where it was.")
            raise typer.Exit(STOPPED) from None
        except (StemmaError, PermissionError) as error:
            if os.environ.get("STEMMA_TRACEBACK"):
                raise
            console.print(f"[red]stemma:[/] {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(FAILED) from None


app = typer.Typer(
    name="stemma",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Build a language model from web pages to an assistant, and prove where every part of it came from.\n\n"
    "Exit codes: 0 success; 1 failure; 2 something disagrees (audit) or is out of date (status --check); "
    "3 not found (why).",
)
corpus_app = typer.Typer(no_args_is_help=True, help="Questions about a cleaned corpus.")
app.add_typer(corpus_app, name="corpus")
console = Console(stderr=True, highlight=False)  # messages to people
out = Console(highlight=False)  # results, which a program may read

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of tables.")]
Stages = Annotated[
    list[str] | None, typer.Argument(help="Assets, or one partition of one: cleaned_corpus@sample.")
]


@app.command()
def demo() -> None:
    """Build the demo's model, web pages to assistant, and print its numbers and its family tree.

    Five minutes on two cores the first time; a second when nothing has changed.
    """
    from jobs.demo import print_demo
    from jobs.run import materialize

    if not materialize(ROOT, None):
        console.print("[bold]Nothing to do:[/] every stage is up to date.\n")
    print_demo(ROOT, out)


@app.command()
def materialize(
    stages: Stages = None,
    crawl: Annotated[
        list[str] | None,
        typer.Option(
            help="Add or change a crawl: NAME=GLOB of WARC, ARC or WET files (local or fsspec URL), or "
            "NAME=commoncrawl:CC-MAIN-2026-45:FILES, NAME=urls:FILE of URLs, or "
            "NAME=text:DATASET (a name on the hub or a glob of files)."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Merge params/NAME.yaml into params.yaml before starting.")
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="Just these, not what they are made from.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Rebuild them even if nothing changed.")] = False,
    as_json: Json = False,
) -> None:
    """Build assets, and whatever they are made from that is out of date. Without names: everything.

    All settings are checked first. Runs through Dagster, so the UI shows it; DVC records the versions in dvc.lock.
    """
    from corpus.crawl_spec import parse_crawl
    from jobs.run import materialize as run
    from resources.workspace import Workspace

    workspace = Workspace(ROOT)
    if preset:
        for line in workspace.apply_preset(preset):
            console.print(f"params.yaml  {line}")
    for argument in crawl or []:
        workspace.set_crawl(*parse_crawl(argument, ROOT))
    made = run(ROOT, stages, only=only, force=force)
    if as_json:
        print(json.dumps(made))
    elif not made:
        console.print("Nothing to do: up to date.")


@app.command()
def generate(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if a file is out of date.")
    ] = False,
) -> None:
    """Write the files that follow from the code: code.yaml, params.schema.json, docs/commands.md.

    code.yaml names the version of the code that decides each stage; run this after changing code, and commit it.
    """
    from jobs.generate import generated_files

    files = generated_files(ROOT, app)
    stale = [path for path in files if not path.exists() or path.read_text("utf-8") != files[path]]
    names = ", ".join(path.relative_to(ROOT).as_posix() for path in stale)
    if check and stale:
        raise WorkspaceError(
            f"{names}: not what the code here gives. Update with 'stemma generate', and commit it."
        )
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, files[path])
    if not check:
        console.print(f"Written: {names}" if stale else "All generated files are up to date.")


@app.command()
def plan(
    preset: Annotated[str | None, typer.Option(help="Merge params/NAME.yaml into params.yaml.")] = None,
    device: Annotated[str, typer.Option(help="H100, H200, B200, A100, L40S or RTX-4090.")] = "H100",
    devices: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """What the base model of params.yaml would be, and what its training would take. Writes and trains nothing."""
    import dataclasses

    from model.training.plan import plan as estimate
    from model.training.plan import print_plan
    from resources.workspace import Workspace

    params = Workspace(ROOT).params_with(preset)
    found = estimate(params["base_model"], params["tokenizer"]["vocab_size"], device, devices)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        print_plan(found, device, devices, out)


@app.command()
def scaling(
    depths: Annotated[str, typer.Option(help="Depths to train, by comma.")] = "2,3,4",
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for scaling.png and the models.")] = Path(
        "work/scaling"
    ),
) -> None:
    """Train small base models of several depths on the corpus as it stands, and draw the scaling law through them."""
    from evals.scaling import print_scaling
    from jobs.scaling import scaling as train_all
    from resources.launch import TrainingLauncher
    from resources.tracking import MlflowTracker

    wanted = [int(depth) for depth in depths.split(",")]
    tracker = MlflowTracker(ROOT)
    points, law = train_all(ROOT, TrainingLauncher(root=str(ROOT)), tracker, wanted, ROOT / out_dir)
    print_scaling(points, law, out)
    out.print(f"plot: {out_dir}/scaling.png")


@app.command()
def status(
    as_json: Json = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 2 if anything is out of date.")] = False,
) -> None:
    """Every asset's version, whether it is up to date and why not, and its key numbers."""
    from jobs.status import chain_status, print_status
    from resources.dvc_ledger import DvcLedger
    from resources.settings_check import check_settings

    ledger = DvcLedger(ROOT)
    check_settings(ledger.chain, ledger.workspace.params())
    rows = chain_status(ledger)
    if as_json:
        print(json.dumps([row.as_row() for row in rows], indent=2))
    else:
        print_status(rows, out)
    if check and any(row.state != "current" for row in rows):
        raise typer.Exit(DISAGREES)


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow UI.")] = 5000,
) -> None:
    """Start the Dagster UI with its schedules, and the MLflow UI, on 127.0.0.1. Ctrl-C stops all of it."""
    from resources.dagster_home import dagster_home
    from resources.services import run_services

    dagster_home(ROOT)
    run_services(ROOT, dagster_port=port, mlflow_port=mlflow_port)


@app.command()
def clean(
    files: Annotated[list[str], typer.Argument(metavar="WARC…", help="WARC, ARC or WET files, or globs.")],
    out_dir: Annotated[
        Path,
        typer.Option(
            "--out", help="Folder for documents/, ledger/, signatures/, stats.json and report.html."
        ),
    ],
    languages: Annotated[str, typer.Option(help="Languages to keep, by comma; empty keeps all.")] = "en",
    profile: Annotated[
        str, typer.Option(help="Extraction: fast, or faithful to FineWeb (trafilatura, four times slower).")
    ] = "fast",
    workers: Annotated[int | None, typer.Option(help="Processes (default: one a core).")] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="A cleaned corpus whose pages shall not come again; oldest first, repeatable."),
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
    """Clean crawl files into text, by themselves: no Dagster, no DVC, just files in and files out."""
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
        out.print(f"\ndocuments, ledger and numbers: {out_dir}\nto look at: {out_dir / 'report.html'}")


@corpus_app.command("train-classifier")
def train_classifier(
    positives: Annotated[
        list[str],
        typer.Option(
            help="Good text: JSON lines, Parquet or text files, a cleaned corpus, or patterns; repeatable."
        ),
    ],
    corpus: Annotated[
        list[Path], typer.Option(help="Cleaned corpus to draw the other side from; repeatable.")
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
    """Say how many documents another threshold would change, from the ledger alone: no crawl is read again."""
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


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(help="rl_model, sft_model, base_model, or a model folder.")
    ] = "rl_model",
    prompt: Annotated[str | None, typer.Option(help="Ask this once and print the answer.")] = None,
    temperature: Annotated[float, typer.Option(help="0 answers greedily.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
) -> None:
    """Talk with a model of the chain. An empty line or Ctrl-D ends it."""
    from model.conversation import Conversation

    folder = Path(model) if Path(model).is_dir() else ROOT / "data" / model
    if not (folder / "config.json").exists():
        raise MissingError(f"{folder} holds no model. Make it first: stemma materialize {model}")
    conversation = Conversation(folder, temperature=temperature, max_new_tokens=max_tokens)
    if prompt is not None:
        print(conversation.ask(prompt))
        return
    console.print(
        f"[dim]{folder.name}: a small model that knows little. It forgets nothing until you leave.[/]"
    )
    while True:
        try:
            question = input("you    > ").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if not question:
            break
        print(f"{folder.name.split('_')[0]:<6} > {conversation.ask(question)}")


@app.command()
def audit(
    asset: Annotated[
        str, typer.Argument(help="Where to start; everything it came from is checked.")
    ] = "eval_reports",
    as_json: Json = False,
) -> None:
    """Re-hash an asset and all that it came from, down to the WARC files, and compare the three ledgers.

    Believes nothing: every byte is read again. Exits with 2 and names the file if anything disagrees.
    """
    from lineage.audit import audit as check
    from lineage.printing import print_tree
    from resources.tracking import MlflowTracker

    report = check(ROOT, asset, find_runs=MlflowTracker(ROOT).find_runs)
    if as_json:
        print(report.to_json())
    else:
        print_tree(report, out)
    if not report.agrees:
        raise typer.Exit(DISAGREES)


@app.command()
def why(
    url: Annotated[str, typer.Argument(help="The page's URL, or its record id, or a host's name.")],
    text: Annotated[
        bool, typer.Option("--text", help="Print the page's text as well, from the crawl.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what became of a page: kept, dropped or failed, by which rule, with which value."""
    from lineage.printing import print_rows
    from lineage.why import nearest, page_text
    from lineage.why import why as find

    rows = find(ROOT, url)
    for row in rows if text else []:
        row["text"] = page_text(ROOT, row)
    near = [] if rows else nearest(ROOT, url)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(url, rows, out, near)
    if not rows:
        raise typer.Exit(NOT_FOUND)


@corpus_app.command("report")
def corpus_report(
    crawl: Annotated[str | None, typer.Argument(help="A crawl of params.yaml (default: every one).")] = None,
) -> None:
    """Draw what became of a crawl as one HTML page: the funnel, hosts, languages, twenty dropped pages a rule."""
    from corpus.report.html_page import report_of

    cleaned = ROOT / "data" / "cleaned_corpus"
    names = [crawl] if crawl else sorted(path.parent.name for path in cleaned.glob("*/stats.json"))
    if not names:
        raise MissingError("No crawl is cleaned yet. Clean one: stemma materialize cleaned_corpus")
    for name in names:
        out.print(str(report_of(ROOT, name)), soft_wrap=True)


@app.command()
def retire(crawl: Annotated[str, typer.Argument(help="The crawl's name in params.yaml.")]) -> None:
    """Take a crawl out of params.yaml and the workspace. Refuses unless DVC's cache holds its every byte."""
    from resources.dvc_ledger import DvcLedger

    for folder in DvcLedger(ROOT).retire_crawl(crawl):
        console.print(f"{folder} left the workspace; its version stays in DVC's cache.")


@app.command()
def sync() -> None:
    """After `git checkout` and `dvc checkout`: tell Dagster which versions stand here now. Also sends what
    MLflow has not heard yet because its server was away."""
    from lineage.sync import sync as tell
    from resources.dagster_home import close_dead_runs, open_instance
    from resources.tracking import MlflowTracker

    with open_instance(ROOT) as instance:
        close_dead_runs(instance)
        told = tell(ROOT, instance)
    for line in told:
        console.print(line)
    reported = sum(": not reported" not in line for line in told)
    sent, left = MlflowTracker(ROOT).replay()
    console.print(
        f"{reported} versions reported to Dagster; MLflow: {sent} entries sent, {left} still to send."
    )
    if left or reported < len(told):
        raise typer.Exit(FAILED)


def main() -> None:
    """Console entry point. Runs in the project's folder, so that relative names mean the same everywhere."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if sys.argv[1:2] == ["clean"]:
        from corpus.engines.pool import block_pandas

        block_pandas()
    app()


if __name__ == "__main__":
    sys.exit(main())
