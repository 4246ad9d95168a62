"""Commands that answer questions: talk with a model, audit a family tree, what happened to a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from commands.terminal import DISAGREES, NOT_FOUND, ROOT, Json, app, console, out
from core.errors import MissingError

MODELS = ("rl_model", "sft_model", "base_model")


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
    folder = Path(model) if Path(model).is_dir() else ROOT / "data" / model
    if not (folder / "config.json").exists():
        if model in MODELS:
            raise MissingError(f"{folder} holds no model yet. Build it first: stemma materialize {model}")
        raise MissingError(f"There is no model '{model}'. Choose {', '.join(MODELS)}, or a model folder.")
    from model.conversation import Conversation

    conversation = Conversation(folder, temperature=temperature, max_new_tokens=max_tokens)
    if prompt is not None:
        print(conversation.ask(prompt))
        return
    console.print(
        f"[dim]{folder.name}: a small model that knows little. It remembers the conversation until you leave.[/]"
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
        str, typer.Argument(help="Where to start; everything it was built from is checked.")
    ] = "eval_reports",
    as_json: Json = False,
) -> None:
    """Hash an asset and all that it was built from again, down to the WARC files, and compare all records of them.

    Compared are files, provenance statements, dvc.lock, Dagster and MLflow.

    Trusts nothing: every byte is read again. Exits with 2 and names the file if anything disagrees.
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
    """Show what happened to a page: kept, dropped or failed, by which rule, with which value."""
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
