"""What became of a crawl, for people: the funnel as a table on the terminal, as Markdown, and as a small plot."""

from collections.abc import Mapping
from typing import Any

STEP_NAMES = {
    "read": "read as a page",
    "url": "address wanted",
    "extraction": "has main text",
    "language": "language wanted",
    "quality": "quality rules",
    "dedup": "not a duplicate",
    "pii": "personal data out",
}
TOP_REASONS = 4
INK, KEPT, DROPPED, FAILED = "#2b2b2b", "#2f6f8f", "#d9c9a8", "#b5483a"


def _data(stats: Any) -> Mapping[str, Any]:
    return getattr(stats, "data", stats)


def funnel(stats: Any) -> list[dict[str, Any]]:
    """The steps of a CleanStats or a loaded stats.json: stage, name, in, dropped, failed, left, share, reasons."""
    data = _data(stats)
    records = max(1, data["records"])
    return [
        step | {"name": STEP_NAMES[step["stage"]], "share": step["left"] / records} for step in data["funnel"]
    ]


def reasons_text(step: Mapping[str, Any], most: int | None = TOP_REASONS) -> str:
    """'rule 12, rule 3, …' of a step, commonest first; for PII, how many pages were touched."""
    if step["touched"]:
        return f"replaced in {step['touched']:,} pages"
    items = list(step["reasons"].items())
    shown = items if most is None else items[:most]
    rest = sum(count for _, count in items[len(shown) :])
    return ", ".join([f"{rule} {count:,}" for rule, count in shown] + ([f"others {rest:,}"] if rest else []))


def headline(stats: Any) -> str:
    """One sentence: records in, documents and words out."""
    data = _data(stats)
    share = data["kept"] / max(1, data["records"])
    return (
        f"{data['records']:,} records: {data['kept']:,} kept ({share:.0%}), {data['dropped']:,} dropped, "
        f"{data['failed']:,} failed; {data['words']:,} words in {data['documents']:,} documents"
    )


def print_funnel(stats: Any, console: Any = None) -> None:
    """Print the funnel, and the scores against the truth where there are any."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table(title=headline(stats), title_justify="left", title_style="bold", header_style="dim")
    for name, side in (("step", "left"), ("in", "right"), ("dropped", "right"), ("failed", "right")):
        table.add_column(name, justify=side, no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for step in funnel(stats):
        numbers = [f"{step[name]:,}" if step[name] else "·" for name in ("dropped", "failed")]
        share = f"{100 * step['share']:.0f}"
        table.add_row(
            step["name"], f"{step['in']:,}", *numbers, f"{step['left']:,}", share, reasons_text(step)
        )
    console.print(table)
    for line in truth_lines(stats):
        console.print(line, highlight=False)


def truth_lines(stats: Any) -> list[str]:
    """The scores against a sample's truth, a line each; none where no truth is known."""
    lines = []
    for name, score in (_data(stats).get("truth") or {}).items():
        if score and name == "extraction" and score["documents"]:
            lines.append(f"{name}: word F1 {score['f1']:.3f} over {score['documents']:,} documents")
        elif score and "right" in score:
            parts = [
                f"{k} {score[k]:.3f}" if score[k] is not None else f"{k} –" for k in ("precision", "recall")
            ]
            counts = ", ".join(f"{score[k]:,} {k}" for k in ("right", "wrong", "missed"))
            lines.append(f"{name}: {', '.join(parts)} ({counts})")
    return lines


def markdown(stats: Any) -> str:
    """The funnel, all reasons and the scores as Markdown, for Dagster and the docs."""
    rows = ["| step | in | dropped | failed | left | why |", "|---|--:|--:|--:|--:|---|"]
    for step in funnel(stats):
        numbers = " | ".join(f"{step[name]:,}" for name in ("in", "dropped", "failed", "left"))
        rows.append(
            f"| {step['name']} | {numbers} | {reasons_text(step, None).replace('|', chr(92) + '|')} |"
        )
    scores = [f"- {line}" for line in truth_lines(stats)]
    return "\n".join([f"**{headline(stats)}**", "", *rows, *(["", *scores] if scores else [])]) + "\n"


def plot_funnel(stats: Any) -> bytes:
    """The funnel as a PNG of about 20 kB: a bar a step, split into what is left, dropped and failed."""
    from io import BytesIO

    from matplotlib.figure import Figure

    steps = funnel(stats)
    figure = Figure(figsize=(8.4, 0.52 * len(steps) + 1.0), dpi=96, layout="constrained")
    axes = figure.subplots()
    places = range(len(steps))
    left = [step["left"] for step in steps]
    dropped = [step["dropped"] for step in steps]
    failed = [step["failed"] for step in steps]
    axes.barh(places, left, color=KEPT, height=0.66, label="left")
    axes.barh(places, dropped, left=left, color=DROPPED, height=0.66, label="dropped")
    before = [a + b for a, b in zip(left, dropped, strict=True)]
    axes.barh(places, failed, left=before, color=FAILED, height=0.66, label="failed")
    width = max(1, steps[0]["in"])
    for place, step in zip(places, steps, strict=True):
        _annotate(axes, place, step, width)
    axes.set_yticks(list(places), [step["name"] for step in steps], color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, width * 1.55)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(headline(stats), fontsize=9.5, loc="left", color=INK, pad=10)
    axes.legend(loc="lower right", fontsize=8, frameon=False, ncols=3)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _annotate(axes: Any, place: int, step: Mapping[str, Any], width: int) -> None:
    """The number left inside the bar, the reasons right of it."""
    inside = step["left"] > 0.12 * width
    axes.text(
        step["left"] - 0.01 * width if inside else step["left"] + 0.01 * width,
        place,
        f"{step['left']:,}",
        va="center",
        ha="right" if inside else "left",
        fontsize=8.5,
        color="white" if inside else INK,
    )
    why = reasons_text(step, 2)
    if why:
        start = max(step["in"], step["left"] + (0 if inside else 0.09 * width)) + 0.015 * width
        axes.text(start, place, why, va="center", ha="left", fontsize=7.5, color=INK)
