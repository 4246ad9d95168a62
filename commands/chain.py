"""Commands that build the chain and report its state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.terminal import DISAGREES, FAILED, ROOT, Json, Stages, app, console, out
from core.errors import ConfigError, WorkspaceError
from core.files import write_atomically

if TYPE_CHECKING:
    import dagster as dg


@app.command()
def demo() -> None:
    """Build the demo's model, web pages to assistant, and print its numbers and its family tree.

    Five minutes on two cores the first time; a second or two when nothing has changed.
    """
    from jobs.demo import print_demo
    from jobs.run import materialize as run

    if not run(ROOT, None, _define):
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
    only: Annotated[bool, typer.Option("--only", help="Only these, not what they are built from.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Rebuild them even if nothing changed.")] = False,
    as_json: Json = False,
) -> None:
    """Build assets, and everything out of date that they are built from. Without names: all assets.

    All settings are checked first. Runs through Dagster, so that the UI shows it; DVC records the versions in dvc.lock.
    """
    from corpus.crawl_spec import parse_crawl
    from jobs.run import materialize as run
    from resources.chain import read_chain
    from resources.settings_check import check_settings
    from resources.workspace import Workspace
    from resources.yaml_file import read_yaml

    workspace = Workspace(ROOT)
    params = workspace.params_with(preset)
    chain = read_chain(read_yaml(ROOT / "dvc.yaml"), params)
    chain.require_assets(stages or [])
    check_settings(chain, params)  # before params.yaml is written
    if preset:
        for line in workspace.apply_preset(preset):
            console.print(f"params.yaml  {line}")
    for argument in crawl or []:
        workspace.set_crawl(*parse_crawl(argument, ROOT))
    made = run(ROOT, stages, _define, only=only, force=force)
    if as_json:
        print(json.dumps(made))
    elif not made:
        console.print("Nothing to do: up to date.")


@app.command()
def generate(
    files: Annotated[list[str] | None, typer.Argument(help="Only these of the files (default: all).")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if a file is out of date.")
    ] = False,
) -> None:
    """Write the files that are generated from the code: code.yaml, params.schema.json, docs/commands.md.

    code.yaml names the version of the code that decides each stage; run this after changing code, and commit it.
    """
    from jobs.generate import generated_files

    found = generated_files(ROOT, app)
    unknown = {ROOT / name for name in files or []} - set(found)
    if unknown:
        known = ", ".join(path.relative_to(ROOT).as_posix() for path in found)
        raise ConfigError(f"{min(unknown).name} is not a generated file. There are: {known}.")
    wanted = [ROOT / name for name in files] if files else list(found)
    stale = [path for path in wanted if not path.exists() or path.read_bytes() != found[path].encode()]
    names = ", ".join(path.relative_to(ROOT).as_posix() for path in stale)
    if check and stale:
        raise WorkspaceError(f"{names}: out of date. Update with 'stemma generate', and commit the result.")
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, found[path])
    if not check:
        console.print(f"Written: {names}" if stale else "All generated files are up to date.")


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
def plan(
    preset: Annotated[str | None, typer.Option(help="Merge params/NAME.yaml into params.yaml.")] = None,
    device: Annotated[str, typer.Option(help="H100, H200, B200, A100, L40S or RTX-4090.")] = "H100",
    devices: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Estimate the base model of params.yaml and what its training would take. Writes and trains nothing."""
    import dataclasses

    from core.settings import read_settings
    from model.training.plan import plan as estimate
    from model.training.plan import print_plan
    from model.vocabulary.config import TokenizerConfig
    from resources.chain import read_chain
    from resources.settings_check import check_settings
    from resources.workspace import Workspace
    from resources.yaml_file import read_yaml

    params = Workspace(ROOT).params_with(preset)
    check_settings(read_chain(read_yaml(ROOT / "dvc.yaml"), params), params)
    vocab_size = read_settings(TokenizerConfig, params["tokenizer"], "tokenizer").vocab_size
    found = estimate(params["base_model"] or {}, vocab_size, device, devices)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        print_plan(found, device, devices, out)


@app.command()
def scaling(
    depths: Annotated[str, typer.Option(help="Depths to train, separated by commas.")] = "2,3,4",
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for scaling.png and the models.")] = Path(
        "work/scaling"
    ),
) -> None:
    """Train small base models of several depths on the present corpus, and fit a scaling law to them."""
    from evals.scaling import print_scaling
    from jobs.scaling import scaling as train_all
    from resources.launch import TrainingLauncher
    from resources.tracking import MlflowTracker

    try:
        wanted = [int(depth) for depth in depths.split(",")]
    except ValueError:
        raise ConfigError(f"--depths {depths}: give whole numbers by comma, as in 2,3,4.") from None
    tracker = MlflowTracker(ROOT)
    points, law = train_all(ROOT, TrainingLauncher(root=str(ROOT)), tracker, wanted, ROOT / out_dir)
    print_scaling(points, law, out)
    out.print(f"plot: {out_dir}/scaling.png")


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
def retire(crawl: Annotated[str, typer.Argument(help="The crawl's name in params.yaml.")]) -> None:
    """Remove a crawl from params.yaml and the workspace. Refuses unless DVC's cache holds every byte of it."""
    from resources.dvc_ledger import DvcLedger

    for folder in DvcLedger(ROOT).retire_crawl(crawl):
        console.print(f"{folder} was removed from the workspace; its version stays in DVC's cache.")


@app.command()
def sync() -> None:
    """Report the present versions to Dagster after `git checkout` and `dvc checkout`.

    Also sends to MLflow what it missed while its server was down.
    """
    from lineage.sync import sync as report_versions
    from resources.dagster_home import close_dead_runs, open_instance
    from resources.tracking import MlflowTracker

    with open_instance(ROOT) as instance:
        close_dead_runs(instance)
        lines = report_versions(ROOT, instance)
    for line in lines:
        console.print(line)
    reported = sum(": not reported" not in line for line in lines)
    sent, left = MlflowTracker(ROOT).replay()
    console.print(
        f"{reported} versions reported to Dagster; MLflow: {sent} entries sent, {left} still to send."
    )
    if left or reported < len(lines):
        raise typer.Exit(FAILED)


def _define(root: Path) -> dg.Definitions:
    """Dagster's definitions, imported where something is to be built."""
    import definitions

    return definitions.define(root)
