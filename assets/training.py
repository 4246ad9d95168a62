"""What the three trained models show alike: their numbers, their curve, and that training was sound."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.plots import training_plot
from assets.stage import Evidence, StageRun

NOT_CONTAMINATED = {"not_contaminated": "Nothing that was trained on covers an example of an evaluation set."}
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


def overlap_check(evidence: Evidence, run: StageRun, texts: Iterable[tuple[str, str]]) -> Evidence:
    """Add the check that no (name, text) of what was trained on gives an evaluation away."""
    from evals.contamination import DecontaminationConfig, overlaps_of
    from model.run_log import settings

    training_set = run.inputs["training_set"]
    config = settings(
        DecontaminationConfig, json.loads((training_set / "config.json").read_text()), "config.json"
    )
    found = list(overlaps_of(texts, training_set, config))
    evidence.checks["not_contaminated"] = not found
    evidence.check_notes["not_contaminated"] = "; ".join([f"{len(found):,} overlaps", *found[:5]])
    return evidence
