"""The base model: pretrained to predict the corpus, before any tuning."""

from __future__ import annotations

from assets.stage import Evidence, StageRun, stage
from assets.training import NOT_CONTAMINATED, TRAINED, overlap_check, training_evidence


@stage(
    group="models",
    kinds={"pytorch", "deepspeed"},
    checks=TRAINED | NOT_CONTAMINATED,
    tracked=True,
    registered=True,
    pool="gpu",
)
def base_model(run: StageRun) -> Evidence:
    """Qwen3's architecture, trained by DeepSpeed ZeRO in a supervised process of its own.

    `tokens/` holds the shards and an index of which page is where; `curve.jsonl` is the training curve.
    """
    from model.data.loader import TokenData
    from model.tokenizer import load_tokenizer

    result = run.launch("model.pretrain")
    evidence = training_evidence(result, run, first=("held_out_bpb", "loss", "tokens", "parameters"))
    return overlap_check(evidence, run, TokenData(run.out / "tokens").texts(load_tokenizer(run.out)))
