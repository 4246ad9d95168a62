"""Small pictures for the asset pages: PNG bytes, drawn without a display, light enough to live in an event."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

SIZE = (6.0, 2.6)  # inches; at 100 dpi some 20 kB a picture
COLOURS = ("#3b5bdb", "#e8590c", "#2b8a3e", "#862e9c")
HELD_OUT = ("held_out_bpb", "heldout_accuracy", "heldout_loss", "lr")  # the first that is there


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
    """Draw loss or reward over steps, with what was measured on held-out data on the right-hand axis."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    def series(name: str) -> tuple[list[float], list[float]]:
        found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        return [x for x, _ in found], [y for _, y in found]

    left = "reward" if any("reward" in row for row in rows) else "loss"
    right = next((name for name in HELD_OUT if any(row.get(name) is not None for row in rows)), None)
    return curves(
        {left: series(left)},
        x="step",
        y=left,
        right={right: series(right)} if right else None,
        right_y=right or "",
    )


def _figure(height: float = SIZE[1]):
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(SIZE[0], height), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
