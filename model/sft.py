"""Supervised fine-tuning: the base model learns to answer, from conversations.

    python -m model.sft --config FILE.json

inputs: base_model (a model folder), conversations (train.parquet, heldout.parquet; evals/probes.py makes them from
what the base model knows). Writes a model folder that chats, with its conversations/, curve.jsonl, summary.json.

Notable:
- only what the assistant writes is learnt: its words, its tool calls, and <|im_end|>, so that it learns to stop;
- a row is one conversation, seen from an empty context as it will be in use; rows of a step are padded to the
  longest of them, and the loss is over the step's global count of supervised tokens (trainer.py), so short rows
  weigh what they hold and empty ones nothing;
- which conversations a step sees is a pure function of the seed and the step.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from core.errors import ConfigError, DataError
from core.files import write_json
from core.settings import read_settings
from model.chat import render
from model.data.prefetch import Prefetch
from model.hashes import file_hash, folder_hash, program_hash
from model.hub.load import load_pretrained
from model.hub.save import save_pretrained
from model.job import Job, run_main
from model.network.config import IGNORE
from model.tokenizer import Tokenizer
from model.training.dial import LR_WIDTH
from model.training.train_config import TrainConfig
from model.training.trainer import Batch, TrainResult, token_loss, train, write_curve
from model.training.world import World, destroy_distributed, init_distributed

LR = 4.5e-3  # the best of 2e-3, 3e-3 and 4.5e-3 on the demo, at LR_WIDTH

Row = tuple[list[int], list[int]]  # token ids, and 1 where the assistant writes


@dataclass(frozen=True)
class SftConfig(TrainConfig):
    """The section `sft_model` of params.yaml. `mixture` and `extra_datasets` are evals/probes.py's to read."""

    epochs: float = 3.0
    batch_rows: int = 64  # conversations a step, over all processes
    max_tokens: int = 512  # longer conversations are left out, and counted
    lr: float = 0.0  # 0: 4.5e-3 · 128 / the model's width
    schedule: str = "linear"
    warmup: float = 0.05
    weight_decay: float = 0.0
    steps: int = 1  # follows from epochs; what is set here is not used
    log_every: int = 5
    heldout_rows: int = 256  # held-out conversations whose loss is measured
    mixture: Mapping[str, Any] = field(default_factory=dict)
    extra_datasets: Sequence[Any] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.epochs <= 0 or self.batch_rows < 1:
            raise ConfigError("sft_model: epochs and batch_rows must be greater than 0.")

    def planned(self, rows: int, d_model: int) -> SftConfig:
        """This configuration with the number of steps that its epochs make of `rows` conversations, and its rate."""
        steps = max(1, round(self.epochs * rows / self.batch_rows))
        return dataclasses.replace(self, steps=steps, lr=self.lr or LR * LR_WIDTH / d_model)


def sft(job: Job) -> None:
    """Read the conversations, tune, measure, export: job.out, whole or not at all."""
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
                "parent": folder_hash(parent),
                "data": file_hash(conversations / "train.parquet"),
                "code": program_hash(__file__),
            },
            evaluate=lambda m: {
                "heldout_loss": mean_loss(m, heldout[: config.heldout_rows], tokenizer.pad_id, world)
            },
            best="heldout_loss",
            what="assistant",
        )
    export(result, job, parent, conversations, {"conversations": len(rows), "left_out": left_out})
    destroy_distributed()


def read_rows(path: Path, tokenizer: Tokenizer, max_tokens: int, cache: Path) -> tuple[list[Row], int]:
    """Rendered conversations of a Parquet file in its order, and how many were too long to be taken."""
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


def padded(rows: Sequence[Row], pad_id: int) -> Batch:
    """Rows as (N, T) inputs and targets, T that of the longest; what is not the assistant's predicts nothing."""
    longest = max(len(ids) for ids, _ in rows) - 1
    inputs = torch.full((len(rows), longest), pad_id)
    targets = torch.full((len(rows), longest), IGNORE)
    for i, (ids, mask) in enumerate(rows):
        inputs[i, : len(ids) - 1] = torch.tensor(ids[:-1])
        learn = torch.tensor(mask[1:], dtype=torch.bool)
        targets[i, : len(ids) - 1][learn] = torch.tensor(ids[1:])[learn]
    return Batch(inputs, targets)


def mean_loss(model: nn.Module, rows: Sequence[Row], pad_id: int, world: World, at_once: int = 64) -> float:
    """Nats a supervised token over `rows`; nan where there is none. Every rank reads all of them."""
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), at_once):
            loss_sum, counted = token_loss(
                model, padded(rows[start : start + at_once], pad_id).to(world.device)
            )
            total, count = total + float(loss_sum), count + counted
    return total / count if count else float("nan")


def export(result: TrainResult, job: Job, parent: Path, conversations: Path, counts: dict[str, int]) -> None:
    """The finished folder: weights, tokenizer with chat template, the conversations, curve and summary."""
    state, last = result.state, result.curve[-1]
    summary = counts | {
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
            save_pretrained(result.engine.module, parent, partial, card(summary), chat=True)
    if result.engine.world.rank == 0:
        shutil.copytree(conversations, partial / "conversations")
        write_curve(partial / "curve.jsonl", result.curve)
        write_json(partial / "summary.json", summary)
        job.publish()
        job.log.message(f"{job.out}: loss {summary['loss']:.3f} nats a token of the assistant's.")
    result.engine.world.barrier()
    job.log.result(**summary)


def card(summary: dict[str, Any]) -> str:
    """The model card."""
    return (
        f"# Assistant\n\nA base model tuned by Stemma on {summary['conversations']:,} conversations (loss on the "
        f"assistant's {summary['supervised_tokens']:,} tokens only): questions about pages that the base model was "
        "found to know, refusals for what it was found not to know, who it is, sums worked in steps, and calculator "
        "calls. The conversations, each with the record_id of its page, are in `conversations/`. Small models say "
        "wrong things fluently: trust no answer of this one.\n"
    )


def main(argv: list[str] | None = None) -> int:
    return run_main("model.sft", sft, argv)


if __name__ == "__main__":
    sys.exit(main())
