"""What the three trained models have in common: their numbers, their curve, and the checks of the training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.plots import training_plot
from assets.stage import Evidence, StageRun

if TYPE_CHECKING:
    from resources.tracked_run import TrackedRun

DECIDES_NOTHING = "evidence and checks of a finished training"

NOT_CONTAMINATED = {"not_contaminated": "Nothing that was trained on covers an example of an evaluation set."}
TRAINED = {"trained": "Steps were taken, and no step had a loss that was not finite."}


def training_evidence(result: Mapping[str, Any], run: StageRun, first: Sequence[str]) -> Evidence:
    """Return a trainer's result as evidence, with the numbers that matter most named `first`; show it in MLflow."""
    steps, bad = result.get("steps", 0), result.get("not_finite_steps", 0)
    loss = result.get("loss")
    left_out = sum(n for _, n in result.get("skipped") or ())
    back = f"; after loss spikes the data of {left_out:,} were skipped" if left_out else ""
    plot = training_plot(run.out / "curve.jsonl")
    evidence = Evidence(
        numbers={name: result[name] for name in (*first, *result) if name in result and name != "skipped"},
        plot=plot,
        checks={"trained": steps > 0 and bad == 0 and (loss is None or math.isfinite(loss))},
        check_notes={"trained": f"{steps:,} steps, {bad:,} with a loss that was not finite{back}"},
    )
    if run.tracked is not None:
        _show_in_mlflow(run.tracked, run.work, plot)
    return evidence


def _show_in_mlflow(tracked: TrackedRun, work: Path, plot: bytes) -> None:
    """Add the picture of the training, and what the model wrote meanwhile, to the MLflow run's artifacts."""
    picture = work / "training.png"
    picture.write_bytes(plot)
    tracked.log_artifact(picture)
    for samples in sorted(work.glob("*/samples.jsonl")):
        from model.training.samples import as_markdown

        page = samples.with_suffix(".md")
        page.write_text(as_markdown(samples), "utf-8")
        tracked.log_artifact(page)


def overlap_check(evidence: Evidence, run: StageRun, texts: Iterable[tuple[str, str]]) -> Evidence:
    """Add the check that no (name, text) that was trained on overlaps with an evaluation set."""
    from core.settings import read_settings
    from evals.contamination import describe_overlaps
    from evals.decontamination_config import DecontaminationConfig

    training_set = run.folder("training_set")
    config = read_settings(
        DecontaminationConfig, json.loads((training_set / "config.json").read_text()), "config.json"
    )
    found = list(describe_overlaps(texts, training_set, config))
    evidence.checks["not_contaminated"] = not found
    evidence.check_notes["not_contaminated"] = "; ".join([f"{len(found):,} overlaps", *found[:5]])
    return evidence
