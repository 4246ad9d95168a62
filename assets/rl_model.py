"""The assistant after reinforcement learning with verifiable rewards."""

from __future__ import annotations

from assets.stage import Evidence, StageRun, stage
from assets.training import TRAINED, training_evidence


@stage(
    group="models",
    kinds={"pytorch", "deepspeed"},
    checks=TRAINED,
    tracked=True,
    registered=True,
    pool="gpu",
)
def rl_model(run: StageRun) -> Evidence:
    """GRPO on problems with a verifier; held-out problems never occur in training."""
    result = run.launch("model.rl")
    return training_evidence(
        result, run, first=("heldout_accuracy", "heldout_accuracy_before", "answers", "reward")
    )
