"""The report's plots: small PNGs whose bytes depend on the numbers alone. They are part of the stage's output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, GREY, RED, GREEN = "#3b6ea5", "#9aa5b1", "#c0504d", "#4f9d69"


def accuracy(report: Mapping[str, Any], path: Path) -> None:
    """Held-out accuracy of the three models with Wilson intervals."""
    rates = report["accuracy"]
    n = next(iter(rates.values()))["n"]
    with figure(path, f"Held-out sums answered right (n = {n}, 95 % intervals)") as axes:
        _bars(axes, list(rates), list(rates.values()), BLUE, 0.0, 0.6)
        axes.set_ylim(0, 110)
        axes.set_ylabel("%")


def knowledge(report: Mapping[str, Any], path: Path) -> None:
    """Recall on known facts, refusal and hallucination on unknown ones."""
    shown = {
        "known: right": ("recall", GREEN),
        "unknown: declined": ("refusal", BLUE),
        "unknown: hallucinated": ("hallucination", RED),
    }
    with figure(path, "Facts: what it says of what it knows and of what it does not know") as axes:
        for i, (label, (name, colour)) in enumerate(shown.items()):
            rates = [report["knowledge"][model][name] for model in report["knowledge"]]
            _bars(axes, list(report["knowledge"]), rates, colour, (i - 1) * 0.26, 0.24, label)
        axes.set_ylabel("%")
        axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=3)
        axes.set_ylim(0, 125)
        axes.set_yticks(range(0, 101, 20))


def bits_per_byte(report: Mapping[str, Any], path: Path) -> None:
    """The models' bits per byte beside the baselines'; lower is better."""
    values = {k: v for k, v in report["bits_per_byte"].items() if not k.startswith("heldout")}
    with figure(path, "Bits per byte of held-out text (lower is better)") as axes:
        colours = [BLUE if name in report["accuracy"] else GREY for name in values]
        bars = axes.bar(list(values), list(values.values()), color=colours, width=0.6)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
        axes.margins(y=0.15)


@contextmanager
def figure(path: Path, title: str) -> Iterator[Axes]:
    """The axes of a figure that is saved when the block ends without error; no date and no version in the file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(5.6, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    yield axes
    drawing.savefig(path, metadata={"Software": None})


def _bars(
    axes: Axes,
    names: Sequence[str],
    rates: Sequence[Mapping[str, float]],
    colour: str,
    shift: float,
    width: float,
    label: str | None = None,
) -> None:
    """Bars in per cent with their intervals; `shift` moves them beside those of another series."""
    places = [i + shift for i in range(len(names))]
    heights = [100 * r["rate"] for r in rates]
    below = [100 * (r["rate"] - r["low"]) for r in rates]
    above = [100 * (r["high"] - r["rate"]) for r in rates]
    axes.bar(places, heights, width, color=colour, label=label)
    axes.errorbar(places, heights, yerr=[below, above], fmt="none", ecolor="black", elinewidth=1, capsize=2)
    for place, height, up in zip(places, heights, above, strict=True):
        axes.text(place, height + up + 1.5, f"{height:.0f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(names)), names)
