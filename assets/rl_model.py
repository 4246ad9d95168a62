"""The assistant, rewarded for what can be verified."""

from __future__ import annotations

from assets.plots import training_plot
from assets.stage import Evidence, StageRun, stage


@stage(group="models", kinds={"pytorch", "deepspeed"}, tracked=True, registered=True, pool="gpu")
def rl_model(run: StageRun) -> Evidence:
    """GRPO on problems with a verifier; held-out problems never occur in training."""
    result = run.launch("model.rl")
    return Evidence(numbers=result, plot=training_plot(run.out / "curve.jsonl"))
