"""Supervised fine-tuning: the base model learns to answer, from conversations.

    python -m model.sft --config FILE.json

inputs: base_model (a model folder), conversations (train.parquet, heldout.parquet; evals/probes.py makes them from
what the base model knows). Writes a model folder that chats, with its conversations/, curve.jsonl, summary.json.

Notable:
- only what the assistant writes is learnt: its text, its tool calls, and <|im_end|>, so that it learns to stop;
- a row is one conversation, seen from an empty context as in use; rows of a step are padded to the longest of them,
  and the loss is over the step's global count of supervised tokens (trainer.py), so every token weighs the same;
- which conversations a step sees is a pure function of the seed and the step.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from core.code import code_hash
from core.errors import DataError
from core.files import write_json
from core.hashing import file_sha256, folder_sha256
from core.settings import read_settings
from model.chat import render
from model.data.batch import Batch, Row, padded, token_loss
from model.data.prefetch import Prefetch
from model.hub.load import load_pretrained
from model.hub.save import save_pretrained
from model.job import Job, run_main
from model.network.transformer import Transformer
from model.tokenizer import Tokenizer
from model.training.sft_config import SftConfig
from model.training.trainer import TrainResult, train, write_curve
from model.training.world import World, destroy_distributed, init_distributed


def sft(job: Job) -> None:
    """Read the conversations, train, evaluate, export: job.out, complete or not at all."""
    config = read_settings(SftConfig, {"seed": job.seed} | job.params, "sft_model")
    parent, conversations = job.input("base_model"), job.input("conversations")
    world = init_distributed(config)
    model, tokenizer = load_pretrained(parent, device=world.device)
    limit = min(config.max_tokens, model.config.max_seq_len)
    rows, left_out = read_rows(conversations / "train.parquet", tokenizer, limit, job.work / "datasets")
    heldout, _ = read_rows(conversations / "heldout.parquet", tokenizer, limit, job.work / "datasets")
    if not rows:
        raise DataError(f"{conversations}/train.parquet holds no conversation of at most {limit} tokens.")
    config = config.planned(len(rows), model.config.d_model)
    supervised = sum(sum(mask) for _, mask in rows)
    job.log.message(
        f"SFT: {len(rows):,} conversations ({left_out:,} too long), {supervised:,} tokens to learn; "
        f"{config.steps:,} steps of {config.batch_rows} conversations."
    )

    def make_batch(step: int) -> Batch:
        return batch_of(rows, step, config.batch_rows, config.seed, tokenizer.pad_id, world)

    with Prefetch(make_batch, config.steps) as batches:
        result = train(
            model,
            config,
            batches,
            work=job.work,
            log=job.log,
            world=world,
            identity={
                "parent": folder_sha256(parent),
                "data": file_sha256(conversations / "train.parquet"),
                "code": code_hash("model.sft"),
            },
            evaluate=lambda m: {
                "heldout_loss": mean_loss(m, heldout[: config.heldout_rows], tokenizer.pad_id, world)
            },
            best="heldout_loss",
            what="assistant",
        )
    export(model, result, job, parent, conversations, {"conversations": len(rows), "left_out": left_out})
    destroy_distributed()


def read_rows(path: Path, tokenizer: Tokenizer, max_tokens: int, cache: Path) -> tuple[list[Row], int]:
    """Rendered conversations of a Parquet file in its order, and the number of those that were too long."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    table = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(cache))
    rendered = [render(row["messages"], tokenizer) for row in table]
    rows = [(ids, mask) for ids, mask in rendered if len(ids) <= max_tokens]
    return rows, len(rendered) - len(rows)


def batch_of(rows: list[Row], step: int, size: int, seed: int, pad_id: int, world: World) -> Batch:
    """This rank's part of step's `size` conversations. Each epoch reads all of them in an order of its own."""
    places = np.arange(step * size, (step + 1) * size)
    epochs = {
        int(e): np.random.default_rng([seed, int(e)]).permutation(len(rows)) for e in set(places // len(rows))
    }
    picked = [rows[epochs[int(p // len(rows))][p % len(rows)]] for p in places]
    return padded(picked[world.share(size)], pad_id)


def mean_loss(
    model: nn.Module, rows: Sequence[Row], pad_id: int, world: World, batch_size: int = 64
) -> float:
    """Nats a supervised token over `rows`; NaN where there is none. Every rank computes all of it."""
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            loss_sum, counted = token_loss(
                model, padded(rows[start : start + batch_size], pad_id).to(world.device)
            )
            total, count = total + float(loss_sum), count + counted
    return total / count if count else float("nan")


def export(
    model: Transformer,
    result: TrainResult,
    job: Job,
    parent: Path,
    conversations: Path,
    counts: dict[str, int],
) -> None:
    """Write the finished folder: weights, tokenizer with chat template, the conversations, curve and summary."""
    state, last = result.state, result.curve[-1]
    summary: dict[str, Any] = counts | {
        "steps": state.step,
        "supervised_tokens": state.tokens,
        "loss": round(state.loss, 6),
        "empty_steps": state.empty_steps,
        "not_finite_steps": state.not_finite_steps,
    }
    if "heldout_loss" in last:
        summary["heldout_loss"] = round(last["heldout_loss"], 6)
    with result.engine.gathered():
        if result.engine.world.rank == 0:
            partial = job.fresh_partial()
            save_pretrained(model, parent, partial, model_card(summary), chat=True)
    if result.engine.world.rank == 0:
        shutil.copytree(conversations, partial / "conversations")
        write_curve(partial / "curve.jsonl", result.curve)
        write_json(partial / "summary.json", summary)
        job.publish()
        job.log.message(f"{job.out}: loss {summary['loss']:.3f} nats an assistant token.")
    result.engine.world.barrier()
    job.log.result(**summary)


def model_card(summary: dict[str, Any]) -> str:
    """The model card."""
    return (
        f"# Assistant\n\nA base model tuned by Stemma on {summary['conversations']:,} conversations (loss on the "
        f"assistant's {summary['supervised_tokens']:,} tokens only): questions about pages that the base model was "
        "found to know, refusals for what it was found not to know, who it is, sums worked in steps, and calculator "
        "calls. The conversations, each with the record_id of its page, are in `conversations/`. Small models say "
        "wrong things fluently: trust no answer of this one.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """The command `python -m model.sft`; returns its exit code."""
    return run_main("model.sft", sft, argv)


if __name__ == "__main__":
    sys.exit(main())
