"""What all commands share: the project's folder, the two consoles, exit codes, and how an error is shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from core.errors import StemmaError

ROOT = Path(__file__).resolve().parent.parent
FAILED, DISAGREES, NOT_FOUND, STOPPED = 1, 2, 3, 130  # exit codes beside 0


class Commands(TyperGroup):
    """Shows an error that the user can fix as one sentence and exit code 1; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:  # typer has its own copy of click, whose Context it does not export
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
