"""What each model can do, in numbers that come with their uncertainty."""

from __future__ import annotations

from assets.stage import Evidence, StageRun, stage


@stage(group="evals", kinds={"markdown"}, tracked=True, pool="gpu")
def eval_reports(run: StageRun) -> Evidence:
    """Base, SFT and RL model side by side: bits per byte beside honest baselines, accuracy, refusals, samples."""
    result = run.launch("evals.report")
    plots = sorted((run.out / "plots").glob("*.png"))
    return Evidence(
        numbers=result,
        plot=plots[0].read_bytes() if plots else None,
        tables={"report": (run.out / "report.md").read_text()},
    )
