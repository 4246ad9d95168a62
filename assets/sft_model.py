"""The assistant: the base model after supervised fine-tuning."""

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
def sft_model(run: StageRun) -> Evidence:
    """First the base model is asked what it knows; then it is tuned on conversations made accordingly.

    `conversations/` holds them, each with the record_id of the page that it came from.
    """
    from evals.contamination import conversation_texts

    conversations = run.work / "conversations"
    probed = run.launch("evals.probes", out=conversations)
    result = run.launch("model.sft", conversations=conversations)
    evidence = training_evidence(
        {**probed, **result}, run, first=("heldout_loss", "conversations", "facts_known", "facts_unknown")
    )
    return overlap_check(evidence, run, conversation_texts(run.out / "conversations"))
