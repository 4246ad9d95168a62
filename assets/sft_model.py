"""The assistant."""

from __future__ import annotations

from assets.plots import training_plot
from assets.stage import Evidence, StageRun, stage


@stage(group="models", kinds={"pytorch", "deepspeed"}, tracked=True, registered=True, pool="gpu")
def sft_model(run: StageRun) -> Evidence:
    """First the base model is asked what it knows; then it is tuned on conversations made to fit.

    `conversations/` holds them, each with the record_id of the page that it came from.
    """
    conversations = run.work / "conversations"
    probed = run.launch("evals.probes", out=conversations)
    result = run.launch("model.sft", conversations=conversations)
    return Evidence(numbers={**probed, **result}, plot=training_plot(run.out / "curve.jsonl"))
