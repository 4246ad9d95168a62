"""What the terminal shows of an evaluation report: the models side by side, and a few conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

DECIDES_NOTHING = "tables for the terminal"
MODELS = ("base", "SFT", "RL")
KINDS = ("identity", "known", "sum", "unknown", "calculator")  # of samples, the ones to show first


def print_comparison(report: dict[str, Any], console: Console) -> None:
    """Print the most important numbers of a report.json as a table, with the verdict below it."""
    from rich.markup import escape
    from rich.table import Table

    verdict, knowledge = escape(report["verdict"]["sentence"]), report["knowledge"]
    table = Table(box=None, header_style="bold", pad_edge=False, caption=verdict)
    for column in ("", *MODELS):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("held-out bits per byte", *(f"{report['bits_per_byte'][m]:.3f}" for m in MODELS))
    table.add_row("held-out sums right", *(_percent(report["accuracy"][m]) for m in MODELS))
    table.add_row("known facts answered right", *(_percent(knowledge[m]["recall"]) for m in MODELS))
    table.add_row("unknown facts declined", *(_percent(knowledge[m]["refusal"]) for m in MODELS))
    console.print(table)


def example_conversations(samples: Path) -> list[tuple[str, str, str]]:
    """(kind, question, answer) of three of the RL model's answers in a samples.jsonl, each of another kind."""
    rows = [row for row in map(json.loads, samples.read_text("utf-8").splitlines()) if row["model"] == "RL"]
    firsts = {row["kind"].split(" ")[0]: row for row in reversed(rows)}
    wanted = [kind for kind in KINDS if kind in firsts][:3]
    return [(firsts[k]["kind"], firsts[k]["question"], firsts[k]["answer"]) for k in wanted]


def _percent(rate: dict[str, float]) -> str:
    """A rate with its interval; brackets are escaped for rich."""
    if not rate["n"]:
        return "–"
    return f"{100 * rate['rate']:.0f} % \\[{100 * rate['low']:.0f}–{100 * rate['high']:.0f}]"
