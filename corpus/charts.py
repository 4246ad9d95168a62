"""Column charts as plain numbers: boxes and texts in SVG's coordinates, which the report's template draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, BASE = 400, 150, 130  # of the drawing; the columns stand on y = BASE
BINS = 28  # of a rule's values


def columns(
    names: Sequence[str], series: Mapping[str, Sequence[int]], *, every: int = 1, root: bool = False
) -> dict[str, Any]:
    """Stacked columns: `series` is CSS class -> a count for each name; `every` n-th name is written below.

    `root` draws the square root of the sums, for counts that differ by orders of magnitude.
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


def values(counts: Mapping[float, int], limit: float | None, number: Any) -> dict[str, Any] | None:
    """The values that a rule measured on the pages it dropped, with its limit as a line; None for too few kinds.

    On a logarithmic axis where they span more than two orders of magnitude. `number` writes a value.
    """
    found = {value: pages for value, pages in counts.items() if math.isfinite(value)}
    every = [*found, *([limit] if limit is not None else [])]
    if len(found) < 4:
        return None
    low, high = min(every), max(every)
    wide = low > 0 and high / low > 100
    place = math.log if wide else float
    start, span = place(low), place(high) - place(low)
    if span <= 0:
        return None
    bins = [0] * BINS
    for value, pages in found.items():
        bins[min(BINS - 1, int(BINS * (place(value) - start) / span))] += pages
    step, top, base = WIDTH / BINS, max(bins), 54
    boxes = [
        _box("dropped", at * step, 0, step, (base - 16) * pages / top, f"{pages:,} pages", base)
        for at, pages in enumerate(bins)
        if pages
    ]
    texts = [_text(0, base + 13, number(low), "axis-text", "start")]
    texts.append(_text(WIDTH, base + 13, number(high), "axis-text", "end"))
    mark = None
    if limit is not None:
        x = round(WIDTH * (place(limit) - start) / span, 1)
        left = x < WIDTH / 2
        mark = {"x": x, "y": 4, "text": f"limit {number(limit)}", "anchor": "start" if left else "end"}
        mark |= {"label_x": x + (5 if left else -5), "label_y": 12}
    return {"width": WIDTH, "height": 70, "base": base, "boxes": boxes, "texts": texts, "mark": mark}


def _box(
    kind: str, x: float, below: float, step: float, height: float, title: str, base: float = BASE
) -> dict[str, Any]:
    gap = min(4, 0.16 * step)
    height = max(height, 0.8)
    place = {"x": round(x + gap / 2, 1), "y": round(base - below - height, 1), "w": round(step - gap, 1)}
    return {"kind": kind, "h": round(height, 1), "title": title} | place


def _text(x: float, y: float, text: str, kind: str = "name", anchor: str = "middle") -> dict[str, Any]:
    return {"x": round(x, 1), "y": round(y, 1), "text": text, "kind": kind, "anchor": anchor}
