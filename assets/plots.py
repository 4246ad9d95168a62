"""Small pictures for the asset pages: PNG bytes, drawn without a display, small enough to be stored in an event."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECIDES_NOTHING = "pictures for people"

SIZE = (6.0, 2.6)  # inches; at 100 dpi some 20 kB a picture
COLOURS = ("#3b5bdb", "#e8590c", "#2b8a3e", "#862e9c")
LEFT: dict[str, Any] = {"fontsize": 8, "loc": "left"}
HELD_OUT = ("held_out_bpb", "heldout_accuracy", "heldout_loss")  # the first that is there
Row = Mapping[str, float]  # of curve.jsonl


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    right: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    right_y: str = "",
) -> bytes:
    """Draw named (x values, y values) lines; those in `right` are dashed and read on the right-hand axis."""
    figure, axes = _figure()
    for colour, (name, (xs, ys)) in zip(COLOURS, series.items(), strict=False):
        axes.plot(xs, ys, label=name, color=colour, linewidth=1.5)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    lines, labels = axes.get_legend_handles_labels()
    if right:
        other = axes.twinx()
        for colour, (name, (xs, ys)) in zip(COLOURS[len(series) :], right.items(), strict=False):
            other.plot(xs, ys, label=name, color=colour, linewidth=1.5, linestyle="--")
        other.set_ylabel(right_y)
        other.spines[["top"]].set_visible(False)
        more_lines, more_labels = other.get_legend_handles_labels()
        lines, labels = lines + more_lines, labels + more_labels
    axes.legend(lines, labels, frameon=False, fontsize=8)
    return _png(figure)


def bars(values: Mapping[str, float], *, x: str) -> bytes:
    """Draw one horizontal bar a name, in the order given, the first on top."""
    figure, axes = _figure(height=max(1.6, 0.8 + 0.26 * len(values)))
    names = list(values)
    drawn = axes.barh(range(len(names)), [values[name] for name in names], color=COLOURS[0])
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.bar_label(drawn, fmt="{:,.6g}", fontsize=7, padding=2)
    axes.margins(x=0.12)
    axes.set_xlabel(x)
    return _png(figure)


def training_plot(path: Path) -> bytes:
    """Draw a training in three panels: loss (or reward) as it was and smoothed; what was measured on held-out data;
    gradient norm and learning rate. A dotted line marks where a run went on after a loss spike."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    main = "reward" if any("reward" in row for row in rows) else "loss"
    held_out = next((name for name in HELD_OUT if _series(rows, name)[0]), None)
    figure = Figure(figsize=(8.4, 2.6), dpi=100, layout="constrained")
    panels = list(figure.subplots(1, 3 if held_out else 2))
    _loss_panel(panels[0], rows, main)
    if held_out:
        steps, values = _series(rows, held_out)
        panels[1].plot(steps, values, color=COLOURS[2], linewidth=1.4, marker="o", markersize=3)
        panels[1].set_title(f"{held_out.replace('_', ' ')} {values[-1]:.3f}", **LEFT)
    rates = _gradient_panel(panels[-1], rows)
    for axes in (*panels, rates):
        axes.spines["top"].set_visible(False)
        axes.tick_params(labelsize=7, which="both")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
        axes.set_xlabel("step", fontsize=8)
    for axes in panels:
        axes.spines["right"].set_visible(False)
    return _png(figure)


def _loss_panel(axes: Axes, rows: Sequence[Row], name: str) -> None:
    steps, values = _series(rows, name)
    smooth = smoothed(values)
    axes.plot(steps, values, color=COLOURS[0], linewidth=0.6, alpha=0.35)
    axes.plot(steps, smooth, color=COLOURS[0], linewidth=1.6)
    axes.set_title(f"{name} {smooth[-1]:.3f}" if smooth else name, **LEFT)
    for before, row in itertools.pairwise(rows):
        if row.get("rollbacks", 0) > before.get("rollbacks", 0):
            axes.axvline(row["step"], color=COLOURS[1], linewidth=1.0, linestyle=":")


def _gradient_panel(axes: Axes, rows: Sequence[Row]) -> Axes:
    """The gradient norm, and on the right-hand axis, which is returned, the learning rate."""
    steps, norms = _series(rows, "grad_norm")
    axes.plot(steps, norms, color=COLOURS[1], linewidth=0.7)
    if norms and min(norms) > 0:
        axes.set_yscale("log")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "125" else "")
    rates = axes.twinx()
    rates.plot(*_series(rows, "lr"), color=COLOURS[3], linewidth=1.4)
    rates.set_ylim(bottom=0)
    rates.yaxis.set_major_formatter(
        lambda y, _: f"{y:.1e}".replace(".0e", "e").replace("e-0", "e-") if y else "0"
    )
    axes.set_title("gradient norm", color=COLOURS[1], **LEFT)
    rates.set_title("learning rate", color=COLOURS[3], fontsize=8, loc="right")
    return rates


def smoothed(values: Sequence[float], over: float = 0.03) -> list[float]:
    """An exponential mean over a share `over` of the values; over a fifth of those before, where that is less."""
    mean, out = 0.0, []
    for i, value in enumerate(values):
        mean += max(1 / (1 + i / 5), 1 / max(1.0, over * len(values))) * (value - mean)
        out.append(mean)
    return out


def _series(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [x for x, _ in found], [y for _, y in found]


def _figure(height: float = SIZE[1]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(SIZE[0], height), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    from PIL import Image  # matplotlib's own dependency

    drawn, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    # 64 colours are enough for lines on white, and a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(64).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
