"""What the commands cost before they do anything: CPU seconds and wall time of each, beside another checkout's.

    python -m benchmarks.startup                      this checkout
    python -m benchmarks.startup --against ../before  and another one, whose commands are run in turn with ours

Both checkouts must hold a finished demo (`make demo`). The runs alternate, and the median of each is shown; CPU seconds
are those of the command and its children (user and system), so that a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

COMMANDS = {
    "stemma --help": ["--help"],
    "stemma status": ["status"],
    "stemma demo (nothing to do)": ["demo"],
    "stemma plan": ["plan"],
    "stemma why HOST": ["why", "almanac.example"],
}


def measure(root: Path, arguments: list[str]) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of one command in a checkout. Raises RuntimeError if it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "stemma.py", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "DO_NOT_TRACK": "1"},
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{root}: stemma {' '.join(arguments)} failed:\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="another checkout, to be run in turn")
    parser.add_argument("--runs", type=int, default=5, help="runs of each command (default 5)")
    options = parser.parse_args()
    roots = [
        Path(__file__).resolve().parent.parent,
        *([options.against.resolve()] if options.against else []),
    ]
    table = Table("command", "CPU s", "wall s", box=None)
    if options.against:
        table = Table(
            "command", "CPU s", "wall s", "before: CPU s", "wall s", "share of CPU", "of wall", box=None
        )
    for name, arguments in COMMANDS.items():
        runs: dict[Path, list[tuple[float, float]]] = {root: [] for root in roots}
        for _ in range(options.runs):
            for root in roots:
                runs[root].append(measure(root, arguments))
        medians = [[statistics.median(column) for column in zip(*runs[root], strict=True)] for root in roots]
        row = [f"{value:.2f}" for median in medians for value in median]
        if options.against:
            row += [f"{ours / theirs:.0%}" for ours, theirs in zip(*medians, strict=True)]
        table.add_row(name, *row)
    Console().print(table)


if __name__ == "__main__":
    main()
