"""What pretraining leaves: a model folder with its token shards, curve, summary and model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from core.files import write_json
from model.data.loader import TokenData
from model.hub.save import save_pretrained
from model.job import Job
from model.network.transformer import Transformer
from model.training.estimate import Estimate
from model.training.trainer import TrainResult, write_curve


def export(
    model: Transformer, result: TrainResult, expected: Estimate, data: TokenData, vocabulary: Path, job: Job
) -> None:
    """Write the finished folder: weights and tokenizer for `transformers`, shards, curve, summary."""
    world = result.engine.world
    summary = summarise(model, result, expected, data)
    with result.engine.gathered():
        if world.rank == 0:
            partial = job.fresh_partial()
            save_pretrained(model, vocabulary, partial, model_card(summary))
    if world.rank == 0:
        shutil.move(data.folder, partial / "tokens")
        write_curve(partial / "curve.jsonl", result.curve)
        write_json(partial / "summary.json", summary)
        job.publish()
        job.log.message(f"{job.out}: held-out bits per byte {summary['held_out_bpb']}.")
    world.barrier()
    job.log.result(**summary)


def summarise(model: Transformer, result: TrainResult, expected: Estimate, data: TokenData) -> dict[str, Any]:
    """The numbers of a run, none of which depends on time or machine."""
    state, last = result.state, result.curve[-1]
    bpb = last.get("held_out_bpb")
    return {
        "parameters": expected.parameters,
        "documents": data.manifest["documents"]["train"],
        "held_out_documents": data.manifest["documents"]["held_out"],
        "split_by": data.manifest["split_by"],
        "corpus_tokens": data.manifest["tokens"]["train"],
        "vocab_size": model.config.vocab_size,
        "steps": state.step,
        "tokens": state.tokens,
        "flops": state.tokens * expected.flops_per_token,
        "loss": round(state.loss, 6),
        "held_out_bpb": None if bpb is None else round(bpb, 6),
        "empty_steps": state.empty_steps,
        "not_finite_steps": state.not_finite_steps,
        "skipped": state.skipped,  # data left out after loss spikes: read by model/training/stability.py
        "data": data.hash,
    }


def model_card(summary: dict[str, Any]) -> str:
    """The model card, README.md of the model folder."""
    bpb = summary["held_out_bpb"]
    quality = f"Held-out text costs it {bpb:.3f} bits per byte. " if bpb is not None else ""
    return (
        f"# Base model\n\nA decoder-only transformer (Qwen3 architecture) of {summary['parameters']:,} parameters, "
        f"trained from nothing by Stemma on {summary['documents']:,} web documents "
        f"({summary['corpus_tokens']:,} tokens, {summary['tokens']:,} seen in training). {quality}"
        "It continues text; it is no assistant and knows little. What it was made of, document by document, is in "
        "`tokens/index.parquet`; how it learned, in `curve.jsonl`.\n"
    )
