"""What `stemma demo` prints when the chain is built: its stages, its models side by side, its family tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from evals.show import example_conversations, print_comparison
from jobs.status import chain_status, print_status
from lineage.printing import family_tree
from resources.dvc_ledger import DvcLedger

if TYPE_CHECKING:
    from rich.console import Console


def print_demo(root: Path, console: Console) -> None:
    """Print what the demo built, and what to do next."""
    from rich.markup import escape

    report = root / "data" / "eval_reports"
    console.rule("[bold]The stages")
    print_status(chain_status(DvcLedger(root)), console)
    console.rule("[bold]The models, side by side")
    print_comparison(json.loads((report / "report.json").read_text("utf-8")), console)
    console.rule("[bold]Three conversations with the final model")
    for kind, question, answer in example_conversations(report / "samples.jsonl"):
        console.print(
            f"[dim]{kind}[/]\n[bold]you   [/] {escape(question)}\n[bold]stemma[/] {escape(answer)}\n"
        )
    console.rule("[bold]The family tree of the RL model")
    console.print(family_tree(root, "rl_model"))
    console.rule("[bold]What next")
    plots = ", ".join(str(path.relative_to(root)) for path in sorted((report / "plots").glob("*.png")))
    console.print(
        f"plots                 {plots}\n"
        "the report            data/eval_reports/report.md\n"
        "what was dropped      reports/cleaned_corpus/sample.html\n"
        "see it all            make ui\n"
        "talk with it          .venv/bin/stemma chat\n"
        "audit the tree        .venv/bin/stemma audit rl_model\n"
        "find a page           .venv/bin/stemma why URL\n"
        "your own pages        .venv/bin/stemma materialize --crawl mine='warcs/*.warc.gz'",
        soft_wrap=True,
    )
