"""The other door: the command line. Every command is a thin word for what a room does."""

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

ROOT = Path(__file__).resolve().parent
FAILED, DISAGREES, NOT_FOUND = 1, 2, 3  # exit codes beside 0

app = typer.Typer(
    name="stemma",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Grow a language model from web pages to an assistant, and prove where every part of it came from.\n\n"
    "Exit codes: 0 well; 1 failed; 2 something disagrees (audit) or is out of date (status --check); "
    "3 not found (why).",
)
corpus_app = typer.Typer(no_args_is_help=True, help="Questions about a cleaned corpus.")
app.add_typer(corpus_app, name="corpus")
say = Console(stderr=True, highlight=False)  # what people read
out = Console(highlight=False)  # what a program may read

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of tables.")]
Stages = Annotated[
    list[str] | None, typer.Argument(help="Assets, or one partition of one: cleaned_corpus@sample.")
]


@app.command()
def demo() -> None:
    """Grow the demo's model, web pages to assistant, and print its numbers and its family tree.

    About ten minutes on two cores the first time; seconds when nothing has changed.
    """
    import definitions
    from jobs.run import materialize

    with _plain_errors():
        made = materialize(definitions.defs, ROOT, None)
        if not made:
            say.print("[bold]Nothing to do:[/] every stage is up to date.\n")
        _show_demo()


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
        str | None, typer.Option(help="Lay params/NAME.yaml over params.yaml before starting.")
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="Just these, not what they are made from.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Make them anew even if nothing changed.")] = False,
    as_json: Json = False,
) -> None:
    """Make assets, and whatever they are made from that is out of date. Without names: everything.

    Runs through Dagster, so the UI shows it; DVC records the versions in dvc.lock.
    """
    from corpus.crawl_spec import parse_crawl
    from jobs.run import materialize as run
    from resources.workspace import Workspace

    with _plain_errors():
        workspace = Workspace(ROOT)
        if preset:
            for line in workspace.apply_preset(preset):
                say.print(f"params.yaml  {line}")
        for word in crawl or []:
            workspace.set_crawl(*parse_crawl(word, ROOT))
        import definitions  # reads params.yaml, so only now

        made = run(definitions.defs, ROOT, stages, only=only, force=force)
        if as_json:
            print(json.dumps(made))
        elif not made:
            say.print("Nothing to do: up to date.")


@app.command()
def plan(
    preset: Annotated[str | None, typer.Option(help="Lay params/NAME.yaml over params.yaml.")] = None,
    device: Annotated[str, typer.Option(help="H100, H200, B200, A100, L40S or RTX-4090.")] = "H100",
    devices: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """What the base model of params.yaml would be, and what its training would take. Writes and trains nothing."""
    import dataclasses

    from model.training.plan import plan as work_out
    from resources.workspace import Workspace

    with _plain_errors():
        params = Workspace(ROOT).params_with(preset)
        found = work_out(params["base_model"], params["tokenizer"]["vocab_size"], device, devices)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        out.print(_plan_table(found, device, devices))


@app.command()
def scaling(
    depths: Annotated[str, typer.Option(help="Depths to train, by comma.")] = "2,3,4",
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for scaling.png and the models.")] = Path(
        "work/scaling"
    ),
) -> None:
    """Train small base models of several depths on the corpus as it stands, and draw the scaling law through them."""
    from jobs.scaling import scaling as train_all
    from resources.launch import TrainingLauncher

    with _plain_errors():
        wanted = [int(word) for word in depths.split(",")]
        points, law = train_all(ROOT, TrainingLauncher(root=str(ROOT)), _tracker(), wanted, ROOT / out_dir)
    out.print(_scaling_table(points, law))
    out.print(f"bits per byte = {law.a:.3g} · FLOPs^-{law.b:.3f}; to look at: {out_dir}/scaling.png")


@app.command()
def status(
    as_json: Json = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 2 if anything is out of date.")] = False,
) -> None:
    """Every asset's version, whether it is up to date and why not, and its key numbers."""
    import definitions
    from jobs.run import status_rows

    with _plain_errors():
        rows = status_rows(definitions.defs, ROOT)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        out.print(_status_table(rows))
    if check and any(row["state"] != "current" for row in rows):
        raise typer.Exit(DISAGREES)


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow UI.")] = 5000,
) -> None:
    """Start the Dagster UI with its schedules, and the MLflow UI, on 127.0.0.1. Ctrl-C stops all of it."""
    from resources.dagster_home import dagster_home
    from resources.services import run_services

    with _plain_errors():
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

    with _plain_errors():
        if out_dir.exists() and any(out_dir.iterdir()):
            raise ValueError(f"{out_dir} is not empty. Name a new folder, so that nothing is overwritten.")
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

    with _plain_errors():
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

    with _plain_errors():
        try:
            limit = None if threshold == "off" else float(threshold)
        except ValueError:
            raise ValueError(f"--threshold {threshold}: give a number, or 'off'.") from None
        corpora = ROOT / "data" / "cleaned_corpus"
        names = crawl or sorted(path.name for path in corpora.glob("*") if (path / "ledger").is_dir())
        folders = [Path(name) if Path(name).is_dir() else corpora / name for name in names]
        if not folders:
            raise FileNotFoundError("No crawl is cleaned yet. Clean one: stemma materialize cleaned_corpus")
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

    with _plain_errors():
        folder = Path(model) if Path(model).is_dir() else ROOT / "data" / model
        if not (folder / "config.json").exists():
            raise ValueError(f"{folder} holds no model. Make it first: stemma materialize {model}")
        conversation = Conversation(folder, temperature=temperature, max_new_tokens=max_tokens)
    if prompt is not None:
        print(conversation.ask(prompt))
        return
    say.print(f"[dim]{folder.name}: a small model that knows little. It forgets nothing until you leave.[/]")
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

    with _plain_errors():
        report = check(ROOT, asset, find_runs=_tracker().find_runs)
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

    with _plain_errors():
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

    with _plain_errors():
        cleaned = ROOT / "data" / "cleaned_corpus"
        names = [crawl] if crawl else sorted(path.parent.name for path in cleaned.glob("*/stats.json"))
        if not names:
            raise FileNotFoundError("No crawl is cleaned yet. Clean one: stemma materialize cleaned_corpus")
        for name in names:
            out.print(str(report_of(ROOT, name)), soft_wrap=True)


@app.command()
def retire(crawl: Annotated[str, typer.Argument(help="The crawl's name in params.yaml.")]) -> None:
    """Take a crawl out of params.yaml and the workspace. Refuses unless DVC's cache holds its every byte."""
    from resources.dvc_ledger import DvcLedger

    with _plain_errors():
        for folder in DvcLedger(ROOT).retire_crawl(crawl):
            say.print(f"{folder} left the workspace; its version stays in DVC's cache.")


@app.command()
def sync() -> None:
    """After `git checkout` and `dvc checkout`: tell Dagster which versions stand here now. Also sends what
    MLflow has not heard yet because its server was away."""
    from lineage.sync import sync as tell
    from resources.dagster_home import close_dead_runs, open_instance

    with _plain_errors():
        with open_instance(ROOT) as instance:
            close_dead_runs(instance)
            told = tell(ROOT, instance)
        for line in told:
            say.print(line)
        reported = sum(": not reported" not in line for line in told)
        sent, left = _tracker().replay()
        say.print(
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


class _plain_errors:
    """Turn the errors that a user can mend into one sentence and exit code 1; let bugs keep their traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from jobs.run import StageFailed
        from resources.workspace import WorkspaceError

        if isinstance(error, KeyboardInterrupt):
            say.print("\nStopped. Nothing half-written is left; the same command goes on where it was.")
            raise typer.Exit(130)
        if isinstance(error, StageFailed | WorkspaceError | ValueError | FileNotFoundError | PermissionError):
            if os.environ.get("STEMMA_TRACEBACK"):
                return
            say.print(f"[red]stemma:[/] {error}", markup=True, soft_wrap=True)
            raise typer.Exit(FAILED)


def _plan_table(found: Any, device: str, devices: int) -> Any:
    from rich.table import Table

    from model.training.estimate import duration, size

    shape, config, expected = found.shape, found.config, found.expected
    memory = expected.memory
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in {
        "model": f"{expected.parameters:,} parameters: {shape.n_layer} layers, {shape.d_model:,} wide, {shape.n_head} "
        f"query and {shape.n_kv_head} key heads of {shape.head_dim}, vocabulary {shape.vocab_size:,}",
        "training": f"{expected.tokens:,} tokens: {expected.steps:,} steps of {config.batch_tokens:,}; "
        f"{config.optimizer}, rate {config.lr:.2g}, weight decay {config.weight_decay:.2g}",
        "operations": f"{expected.flops:.2g} FLOPs, {expected.flops_per_token:.2g} a token",
        "hardware": f"{devices} × {device}, ZeRO {config.zero_stage}, {config.micro_batches} micro-batches"
        + (", activations computed twice" if config.activation_checkpointing else ""),
        "memory": f"{size(memory.total)} a device: weights {size(memory.weights)}, gradients "
        f"{size(memory.gradients)}, optimiser {size(memory.optimizer)}, step {size(memory.activations)}",
        "time": f"{duration(expected.seconds)} at the usual share of the peak (45 %)",
    }.items():
        table.add_row(f"[bold]{name}[/]", value)
    return table


def _scaling_table(points: list[Any], law: Any) -> Any:
    from rich.table import Table

    table = Table("depth", "parameters", "tokens", "FLOPs", "bits per byte", "on the line", box=None)
    for p in points:
        row = (p.depth, f"{p.parameters:,}", f"{p.tokens:,}", f"{p.flops:.2g}", f"{p.bpb:.3f}")
        table.add_row(*map(str, row), f"{law.at(p.flops):.3f}")
    return table


def _tracker() -> Any:
    from resources.tracking import MlflowTracker

    return MlflowTracker(root=str(ROOT))


def _status_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("asset", "version", "state", "numbers", "seconds"):
        table.add_column(
            column, justify="right" if column == "seconds" else "left", no_wrap=column in ("asset", "version")
        )
    colours = {"current": "green", "stale": "yellow", "missing": "red"}
    for row in rows:
        state = f"[{colours[row['state']]}]{row['state']}[/]"
        if row["reasons"]:
            state += f" [dim]({row['reasons'][0]})[/]"
        numbers = ", ".join(f"{name} {_short(value)}" for name, value in list(row["numbers"].items())[:4])
        seconds = "" if row["seconds"] is None else f"{row['seconds']:,.0f}"
        table.add_row(row["stage"], (row["version"] or "")[:8], state, numbers, seconds)
    return table


def _short(value: Any) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def _show_demo() -> None:
    import definitions
    from jobs.run import status_rows
    from lineage.printing import family_tree

    out.rule("[bold]The stages")
    out.print(_status_table(status_rows(definitions.defs, ROOT)))
    report = ROOT / "data" / "eval_reports"
    out.rule("[bold]The models, side by side")
    out.print(_comparison(json.loads((report / "report.json").read_text())))
    out.rule("[bold]Three conversations with the final model")
    for kind, question, answer in _samples(report / "samples.jsonl"):
        out.print(f"[dim]{kind}[/]\n[bold]you   [/] {escape(question)}\n[bold]stemma[/] {escape(answer)}\n")
    out.rule("[bold]The family tree of the RL model")
    out.print(family_tree(ROOT, "rl_model"))
    out.rule("[bold]What next")
    plots = ", ".join(str(p.relative_to(ROOT)) for p in sorted((report / "plots").glob("*.png")))
    out.print(
        f"plots                 {plots}\n"
        "the report            data/eval_reports/report.md\n"
        "what was dropped      reports/cleaned_corpus/sample.html\n"
        "see it all            make ui\n"
        "talk with it          .venv/bin/stemma chat\n"
        "check the tree        .venv/bin/stemma audit rl_model\n"
        "what became of a page .venv/bin/stemma why URL\n"
        "your own pages        .venv/bin/stemma materialize --crawl mine='warcs/*.warc.gz'",
        soft_wrap=True,
    )


def _comparison(report: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(
        box=None, header_style="bold", pad_edge=False, caption=escape(report["verdict"]["sentence"])
    )
    for column in ("", "base", "SFT", "RL"):
        table.add_column(column, justify="right" if column else "left")
    models = ("base", "SFT", "RL")
    knowledge = report["knowledge"]
    table.add_row("held-out bits per byte", *(f"{report['bits_per_byte'][m]:.3f}" for m in models))
    table.add_row("held-out sums right", *(_percent(report["accuracy"][m]) for m in models))
    table.add_row("known facts answered right", *(_percent(knowledge[m]["recall"]) for m in models))
    table.add_row("unknown facts declined", *(_percent(knowledge[m]["refusal"]) for m in models))
    return table


def _percent(rate: dict[str, float]) -> str:
    return (
        f"{100 * rate['rate']:.0f} % \\[{100 * rate['low']:.0f}–{100 * rate['high']:.0f}]"
        if rate["n"]
        else "–"
    )


def _samples(path: Path) -> list[tuple[str, str, str]]:
    """Return one conversation of the RL model about itself, one about a page, one sum."""
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if row["model"] == "RL"]
    firsts = {row["kind"].split(" ")[0]: row for row in reversed(rows)}
    wanted = [kind for kind in ("identity", "known", "sum", "unknown", "calculator") if kind in firsts][:3]
    return [(firsts[k]["kind"], firsts[k]["question"], firsts[k]["answer"]) for k in wanted]


if __name__ == "__main__":
    sys.exit(main())
