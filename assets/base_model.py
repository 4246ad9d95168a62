"""The language model before it is anybody's assistant."""

from __future__ import annotations

from assets.plots import training_plot
from assets.stage import Evidence, StageRun, stage


@stage(group="models", kinds={"pytorch", "deepspeed"}, tracked=True, registered=True, pool="gpu")
def base_model(run: StageRun) -> Evidence:
    """Qwen3's architecture, trained by DeepSpeed ZeRO in a supervised process of its own.

    `tokens/` holds the shards and an index that says which page stands where; `curve.jsonl` the training curve.
    """
    result = run.launch("model.pretrain")
    return Evidence(numbers=result, plot=training_plot(run.out / "curve.jsonl"))
