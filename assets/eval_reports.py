"""What each model can do, in numbers that come with their uncertainty."""

from __future__ import annotations

import json

from assets.stage import Evidence, StageRun, stage


@stage(
    group="evals",
    kinds={"markdown"},
    checks={
        "nothing_leaked": "No held-out problem and no held-out subject occurs in training conversations."
    },
    tracked=True,
    pool="gpu",
)
def eval_reports(run: StageRun) -> Evidence:
    """Base, SFT and RL model side by side: bits per byte beside baselines, accuracy, refusals, samples."""
    result = run.launch("evals.report")
    overlap = json.loads((run.out / "report.json").read_text())["contamination"]
    leaked = {name: n for name, n in overlap.items() if name.endswith("_in_training")}
    plots = sorted((run.out / "plots").glob("*.png"))
    return Evidence(
        numbers=result,
        plot=plots[0].read_bytes() if plots else None,
        tables={"report": (run.out / "report.md").read_text()},
        checks={"nothing_leaked": not any(leaked.values())},
        check_notes={"nothing_leaked": ", ".join(f"{name} {n:,}" for name, n in leaked.items())},
    )
