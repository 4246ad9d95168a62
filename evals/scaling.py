"""How much more compute would improve a model: a scaling law fitted to a few small trainings.

Each training is a point: FLOPs spent, bits per byte of the same held-out text. The power law bpb = a · FLOPs^-b (arXiv
2001.08361) is fitted to them, a straight line on logarithmic axes. Three small models do not predict what a large one
will reach, but they show whether the settings that follow from depth are good: a point far above the line is a model
trained badly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.errors import ConfigError
from evals.plots import BLUE, GREY, figure

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Point:
    """One training."""

    depth: int
    parameters: int
    tokens: int
    flops: float
    bpb: float  # bits per byte of held-out text


@dataclass(frozen=True)
class Law:
    """bpb = a · FLOPs^-b; worst: the largest relative error of a point."""

    a: float
    b: float
    worst: float

    def at(self, flops: float) -> float:
        """Bits per byte that the law gives for so many FLOPs."""
        return self.a * flops**-self.b


def fit(points: Sequence[Point]) -> Law:
    """The power law nearest to the points, by least squares of logarithms. Raises ConfigError for fewer than two."""
    if len({point.flops for point in points}) < 2:
        raise ConfigError("A scaling law needs two trainings of different size; three show whether it holds.")
    flops, bpb = (np.log([getattr(p, name) for p in points]) for name in ("flops", "bpb"))
    slope, intercept = np.polyfit(flops, bpb, 1)
    off = np.exp(np.abs(bpb - (intercept + slope * flops))) - 1
    return Law(float(np.exp(intercept)), float(-slope), float(off.max()))


def draw(points: Sequence[Point], law: Law, path: Path) -> None:
    """Points and line, both axes logarithmic; PNG."""
    with figure(path, f"Bits per byte = {law.a:.3g} · FLOPs^-{law.b:.3f}") as axes:
        reach = np.geomspace(min(p.flops for p in points) / 10, max(p.flops for p in points) * 10, 50)
        axes.plot(reach, [law.at(flops) for flops in reach], color=GREY, linestyle="--", linewidth=1)
        axes.plot([p.flops for p in points], [p.bpb for p in points], "o", color=BLUE)
        for number, p in enumerate(sorted(points, key=lambda p: p.flops)):
            above = number % 2  # alternately, so that the labels of near points do not overlap
            axes.annotate(
                f"depth {p.depth}, {p.parameters / 1e6:.2g}M parameters",
                (p.flops, p.bpb),
                textcoords="offset points",
                xytext=(6, 4) if above else (-6, -4),
                horizontalalignment="left" if above else "right",
                verticalalignment="bottom" if above else "top",
                fontsize=7,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(lambda y, _: f"{y:.3g}")
        axes.set_xlabel("FLOPs of training")
        axes.set_ylabel("held-out bits per byte")


def print_scaling(points: Sequence[Point], law: Law, console: Console) -> None:
    """Print the trainings as a table, each with the bits per byte that the law gives for it."""
    from rich.table import Table

    table = Table("depth", "parameters", "tokens", "FLOPs", "bits per byte", "on the line", box=None)
    for p in points:
        row = (p.depth, f"{p.parameters:,}", f"{p.tokens:,}", f"{p.flops:.2g}", f"{p.bpb:.3f}")
        table.add_row(*map(str, row), f"{law.at(p.flops):.3f}")
    console.print(table)
