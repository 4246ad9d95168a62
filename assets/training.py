"""What the three trained models show alike: their numbers, their curve, and that training was sound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.plots import training_plot
from assets.stage import Evidence

TRAINED = {"trained": "Steps were taken, and no step had a loss that was not finite."}


def training_evidence(result: Mapping[str, Any], out: Path, first: Sequence[str]) -> Evidence:
    """Return a trainer's result as evidence, with the numbers that matter most named `first`."""
    steps, bad = result.get("steps", 0), result.get("not_finite_steps", 0)
    loss = result.get("loss")
    return Evidence(
        numbers={name: result[name] for name in (*first, *result) if name in result},
        plot=training_plot(out / "curve.jsonl"),
        checks={"trained": steps > 0 and bad == 0 and (loss is None or math.isfinite(loss))},
        check_notes={"trained": f"{steps:,} steps, {bad:,} with a loss that was not finite"},
    )
