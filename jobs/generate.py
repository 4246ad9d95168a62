"""The committed files that follow from the code: `stemma generate` writes them, and a test holds them to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus.crawl_spec import SOURCES
from resources.chain import CODE_FILE, read_chain
from resources.code_versions import render_code
from resources.settings_check import SCHEMA_FILE, params_schema
from resources.workspace import Workspace
from resources.yaml_file import read_yaml

if TYPE_CHECKING:
    from typer import Typer

COMMANDS_PAGE = Path("docs", "commands.md")


def generated_files(root: Path, app: Typer) -> dict[Path, str]:
    """What each generated file should hold, by path: code versions, the schema of params.yaml, the commands' help."""
    params = Workspace(root).params()
    chain = read_chain(read_yaml(root / "dvc.yaml"), params)  # without code.yaml, which may be damaged
    return {
        root / CODE_FILE: render_code(root, chain, params),
        root / SCHEMA_FILE: params_schema(chain, SOURCES),
        root / COMMANDS_PAGE: commands_page(app),
    }


def commands_page(app: Typer) -> str:
    """Every command with its arguments and options, in Markdown, from the help that the terminal shows."""
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    command = get_command(app)
    context: Any = command.make_context("stemma", [], resilient_parsing=True)
    page = get_docs_for_click(obj=command, ctx=context, name="stemma")
    return (
        f"<!-- Written by `stemma generate` from the commands' own help; do not edit. -->\n\n{page.strip()}\n"
    )
