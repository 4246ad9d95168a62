"""The language model before it is anybody's assistant."""

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
def base_model(run: StageRun) -> Evidence:
    """Qwen3's architecture, trained by DeepSpeed ZeRO in a supervised process of its own.

    `tokens/` holds the shards and an index that says which page stands where; `curve.jsonl` the training curve.
    """
    result = run.launch("model.pretrain")
    return training_evidence(result, run.out, first=("held_out_bpb", "loss", "tokens", "parameters"))
