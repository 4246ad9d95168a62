"""Column charts as plain numbers: boxes and texts in SVG coordinates, which the report's template draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DECIDES_NOTHING = "drawings for the report"
WIDTH, HEIGHT, BASE = 400, 150, 130  # of a drawing, in its own units; columns start at y = BASE
VALUES_BASE = 54  # BASE of the drawing of a rule's values
BINS = 28  # of a rule's values


def columns(
    names: Sequence[str], series: Mapping[str, Sequence[int]], *, every: int = 1, root: bool = False
) -> dict[str, Any]:
    """Stacked columns: `series` maps a CSS class to a count for each name; every `every`-th name is written below.

    `root`: heights are square roots of the sums, for counts that differ by orders of magnitude.
    """
    sums = [sum(counts) for counts in zip(*series.values(), strict=True)]
    scale = math.sqrt if root else float
    top = scale(max([1, *sums]))
    step = WIDTH / len(names)
    boxes, texts = [], []
    for at, name in enumerate(names):
        height, below = (BASE - 18) * scale(sums[at]) / top, 0.0
        for kind, counts in series.items():
            share = counts[at] / sums[at] if sums[at] else 0
            if share:
                boxes.append(
                    _box(kind, at * step, below, step, height * share, f"{name}: {counts[at]:,} {kind}")
                )
            below += height * share
        if at % every == 0:
            texts.append(_text(at * step + step / 2, BASE + 14, name))
        if sums[at] and not root:
            texts.append(_text(at * step + step / 2, BASE - height - 4, f"{sums[at]:,}", "count"))
    return {"width": WIDTH, "height": HEIGHT, "base": BASE, "boxes": boxes, "texts": texts}


def values(
    counts: Mapping[float, int], limits: Sequence[float], number: Callable[[float], str], side: str = ""
) -> dict[str, Any] | None:
    """A histogram of the values that a rule measured, with its limits as lines; None for fewer than four values.

    On a logarithmic axis where they span more than two orders of magnitude; heights are square roots. `number` formats
    a value. `side`: the values are those of all pages, and the rule drops what is above ('max') or below ('min') its
    limit; with several limits (one a language) what is beyond all of them is drawn as dropped.
    """
    found = {value: pages for value, pages in counts.items() if math.isfinite(value)}
    if len(found) < 4:
        return None
    low, high = min([*found, *limits]), max([*found, *limits])
    logarithmic = low > 0 and high / low > 100
    start, span = (math.log(low), math.log(high / low)) if logarithmic else (low, high - low)

    def place(value: float) -> float:
        return WIDTH * ((math.log(value) if logarithmic else value) - start) / span

    bins = [0] * BINS
    for value, pages in found.items():
        bins[min(BINS - 1, int(BINS * place(value) / WIDTH))] += pages
    cut = place(max(limits) if side == "max" else min(limits)) if limits and side else None
    step, top = WIDTH / BINS, math.sqrt(max(bins))
    boxes = []
    for at, pages in enumerate(bins):
        if pages:
            beyond = cut is None or ((at + 0.5) * step > cut) == (side == "max")
            height = (VALUES_BASE - 16) * math.sqrt(pages) / top
            kind = "dropped" if beyond else "kept"
            boxes.append(_box(kind, at * step, 0, step, height, f"{pages:,} pages", VALUES_BASE))
    texts = [_text(0, VALUES_BASE + 13, number(low), "axis-text", "start")]
    texts.append(_text(WIDTH, VALUES_BASE + 13, number(high), "axis-text", "end"))
    marks = [round(place(limit), 1) for limit in sorted(limits)]
    if marks:
        left = marks[-1] < WIDTH / 2
        label = ("limit " if len(limits) == 1 else "limits ") + ", ".join(map(number, sorted(limits)))
        x = marks[-1] + 5 if left else marks[0] - 5
        texts.append(_text(x, 12, label, "limit", "start" if left else "end"))
    drawing = {"width": WIDTH, "height": VALUES_BASE + 16, "base": VALUES_BASE}
    return drawing | {"boxes": boxes, "texts": texts, "marks": marks}


def _box(
    kind: str, x: float, below: float, step: float, height: float, title: str, base: float = BASE
) -> dict[str, Any]:
    gap = min(4, 0.16 * step)
    height = max(height, 0.8)
    place = {"x": round(x + gap / 2, 1), "y": round(base - below - height, 1), "w": round(step - gap, 1)}
    return {"kind": kind, "h": round(height, 1), "title": title} | place


def _text(x: float, y: float, text: str, kind: str = "name", anchor: str = "middle") -> dict[str, Any]:
    return {"x": round(x, 1), "y": round(y, 1), "text": text, "kind": kind, "anchor": anchor}
