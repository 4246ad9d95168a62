"""Small plots of a cleaned corpus for Dagster's asset page: PNG bytes, some 20 to 40 kB, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from corpus.report import summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECIDES_NOTHING = "plots for people"
INK, SOFT, KEPT, DROPPED, FAILED = "#24292d", "#5d666d", "#2f6f8f", "#d6c49b", "#b5483a"
MOST_ROWS = 8  # bars of the languages' and the hosts' panel


def plot_funnel(stats: Any) -> bytes:
    """From records to tokens: a bar a step, split into records left, dropped and failed, with the reasons."""
    from matplotlib.figure import Figure

    steps = summary.funnel(stats)
    figure = Figure(figsize=(9.6, 0.5 * len(steps) + 1.5), dpi=90, layout="constrained")
    axes = figure.subplots()
    width = max(1, steps[0]["in"])
    for place, step in enumerate(steps):
        start = 0
        for kind, colour in (("left", KEPT), ("dropped", DROPPED), ("failed", FAILED)):
            axes.barh(place, step[kind], left=start, color=colour, height=0.62)
            start += step[kind]
        _number_left(axes, place, step["left"], width)
        text = summary.reasons_text(step, 3)
        axes.text(width * 1.03, place, _cut(text, 74), va="center", fontsize=7.5, color=SOFT)
    axes.set_yticks(range(len(steps)), [step["name"] for step in steps], fontsize=9, color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, width * 2.15)
    axes.set_xticks([])
    axes.set_title(summary.headline(stats), fontsize=10, loc="left", color=INK, pad=10)
    axes.set_xlabel(summary.outcome(stats, summary.tokens(stats)), fontsize=9, loc="left", color=INK)
    _legend(axes, {"left": KEPT, "dropped": DROPPED, "failed": FAILED})
    return _png(figure, axes)


def plot_contents(stats: Any) -> bytes:
    """The corpus in four panels: languages, hosts, lengths, certainty of the language."""
    from matplotlib.figure import Figure

    data = getattr(stats, "data", stats)
    figure = Figure(figsize=(9.6, 5.6), dpi=90, layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    languages = [(name, n, 0) for name, n in data["languages"].items()]
    languages += [(name, 0, n) for name, n in data["other_languages"].items()]
    _bars(panels[0], "pages by language", sorted(languages, key=lambda row: -row[1] - row[2]))
    hosts = data["hosts"]["most_read"].items()
    rows = [(host, seen["kept"], seen["records"] - seen["kept"]) for host, seen in hosts]
    _bars(panels[1], f"records of the busiest of {data['hosts']['read']:,} hosts", rows)
    lengths = data["words_per_document"]
    _columns(panels[2], "documents by length, from so many words on", lengths, list(lengths.values()))
    scores = data["language_scores"]
    kept, dropped = ([seen[kind] for seen in scores.values()] for kind in ("kept", "dropped"))
    _columns(panels[3], "pages by certainty of their language (log scale)", scores, kept, dropped, every=4)
    panels[3].set_yscale("symlog", linthresh=10)
    panels[3].set_yticks([])
    panels[3].minorticks_off()
    _legend(panels[3], {"kept": KEPT, "dropped": DROPPED}, "upper left")
    return _png(figure, *panels)


def _bars(axes: Axes, title: str, rows: Sequence[tuple[str, int, int]]) -> None:
    """Horizontal bars of (name, kept, dropped), the first on top."""
    shown = rows[:MOST_ROWS]
    names = [_cut(name or "(none)", 32) for name, _, _ in shown]
    places = range(len(shown))
    kept, dropped = [row[1] for row in shown], [row[2] for row in shown]
    axes.barh(places, kept, color=KEPT, height=0.66)
    drawn = axes.barh(places, dropped, left=kept, color=DROPPED, height=0.66)
    axes.bar_label(drawn, [f"{k + d:,}" for _, k, d in shown], fontsize=7.5, padding=3, color=INK)
    axes.set_yticks(places, names, fontsize=8, color=INK)
    axes.set_ylim(max(len(shown), 5) - 0.4, -0.6)
    axes.margins(x=0.14)
    axes.set_xticks([])
    axes.set_title(title, fontsize=9, loc="left", color=SOFT, pad=10)


def _columns(
    axes: Axes,
    title: str,
    names: Mapping[str, Any],
    kept: Sequence[int],
    dropped: Sequence[int] = (),
    every: int = 1,
) -> None:
    """Columns of counts, one a bin."""
    places = range(len(names))
    drawn = axes.bar(places, kept, color=KEPT, width=0.84)
    if dropped:
        axes.bar(places, dropped, bottom=kept, color=DROPPED, width=0.84)
    else:
        axes.bar_label(drawn, [f"{n:,}" if n else "" for n in kept], fontsize=7, padding=2, color=INK)
    labels = [name.rstrip("+") for name in names]
    axes.set_xticks(places[::every], labels[::every], fontsize=7.5, color=INK)
    axes.set_yticks([])
    axes.margins(y=0.14)
    axes.set_title(title, fontsize=9, loc="left", color=SOFT, pad=10)


def _number_left(axes: Axes, place: int, left: int, width: int) -> None:
    inside = left > 0.12 * width
    x, side = (left - 0.012 * width, "right") if inside else (left + 0.012 * width, "left")
    colour = "white" if inside else INK
    axes.text(x, place, f"{left:,}", va="center", ha=side, fontsize=8.5, color=colour)


def _legend(
    axes: Axes, colours: Mapping[str, str], place: Literal["lower right", "upper left"] = "lower right"
) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    axes.legend(handles=handles, loc=place, fontsize=7.5, frameon=False, ncols=len(colours), handlelength=1)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _png(figure: Figure, *panels: Axes) -> bytes:
    for axes in panels:
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
