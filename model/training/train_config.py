"""The settings of training that base model, SFT and reinforcement learning share, and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.errors import ConfigError

SCHEDULES = ("constant", "linear", "cosine", "wsd")
OFFLOAD = {"none": 0, "optimizer": 1, "parameters": 3}  # to the CPU's memory: the ZeRO stage that each needs
# Settings that change no number of the result, and those that change its last digits only.
NOT_IDENTITY = {"log_every", "stats_every", "checkpoint_every", "keep_checkpoints", "keep_best"}
LAST_DIGITS = {"micro_batches", "engine", "zero_stage", "offload", "activation_checkpointing", "threads"}
MUON_NUMBERS_AT_ONCE = 2**25  # in one batch of matrices and rank: 64 MB in bfloat16


@dataclass(frozen=True)
class TrainConfig:
    """What the training loop needs. The configurations of the stages inherit from it and add their own fields."""

    steps: int = 1000  # optimiser steps
    optimizer: str = "adamw"  # or muon: for the matrices inside the blocks, with AdamW for the rest
    lr: float = 3e-3  # the peak
    matrix_lr: float = 0.0  # the peak of Muon's; 0: lr
    momentum: float = 0.95  # Muon's, after 300 steps; it starts at 0.85
    schedule: str = "wsd"  # constant, linear, cosine, or wsd: warm-up, stable, decay (arXiv 2404.06395)
    warmup: float = 0.02  # share of the steps
    decay: float = 0.3  # share of the steps, at the end; wsd only
    final_lr: float = 0.0  # as a share of lr
    weight_decay: float | None = 0.1  # matrices only; null where a scaling recipe is to set it
    beta1: float = 0.9
    beta2: float = 0.95  # GPT-3, arXiv 2005.14165, appendix B
    eps: float = 1e-8
    clip: float = 1.0  # maximum gradient norm; 0: no clipping
    micro_batches: int = 1  # a step is computed in so many parts, to save memory
    precision: str = (
        "fp32"  # or bf16: computed under autocast, weights stay float32; or fp8: also in the blocks' matrices
    )
    engine: str = "deepspeed"  # or torch, which is also used where DeepSpeed is not installed
    zero_stage: int = 0  # DeepSpeed ZeRO 0 to 3
    offload: str = "none"  # to the CPU's memory: optimizer (its moments and its step), or parameters as well
    activation_checkpointing: bool = False  # keep only each block's input, recompute the block in backward
    threads: int = 2  # CPU threads of each process; the last bits of a result depend on it
    compile: bool = False  # torch.compile; on CPU it needs a C++ compiler
    seed: int = 0
    log_every: int = 1  # steps
    eval_every: int = 0  # steps; 0: only after the last
    checkpoint_every: int = 100  # steps; there is always one after the last
    keep_checkpoints: int = 2  # the newest; also the best one, where the stage names a metric
    keep_best: bool = True
    # Times that a run whose loss spikes may roll back (model/training/stability.py); 0: the rule is off.
    rollbacks: int = 0
    stats_every: int = 100  # steps; update ratios of the layers (model/training/meter.py); 0: never

    def __post_init__(self) -> None:
        choices: dict[str, Collection[Any]] = {"optimizer": ("adamw", "muon"), "schedule": SCHEDULES}
        choices |= {"precision": ("fp32", "bf16", "fp8"), "engine": ("deepspeed", "torch")}
        choices |= {"zero_stage": (0, 1, 2, 3), "offload": OFFLOAD}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}: {getattr(self, name)!r} is not one of {tuple(allowed)}.")
        if self.zero_stage < (needed := OFFLOAD[self.offload]):
            raise ConfigError(
                f"offload: {self.offload} needs a zero_stage of at least {needed}; now {self.zero_stage}."
            )
        for name in (
            "micro_batches",
            "threads",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1.")

    @property
    def half(self) -> bool:
        """Whether to compute under bfloat16's autocast."""
        return self.precision != "fp32"


def matrices_at_once(shape: Sequence[int]) -> int:
    """How many matrices of a shape Muon orthogonalises together on one rank."""
    return max(1, MUON_NUMBERS_AT_ONCE // math.prod(shape))


def identity_settings(config: TrainConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that a run's numbers depend on, and those that only their last digits depend on."""
    relevant = {k: v for k, v in asdict(config).items() if k not in NOT_IDENTITY}
    if config.rollbacks:  # a rollback goes to a periodic checkpoint
        relevant["checkpoint_every"] = config.checkpoint_every
    numbers = {name: value for name, value in relevant.items() if name not in LAST_DIGITS}
    return numbers, {name: relevant[name] for name in sorted(LAST_DIGITS)}


def lr_at(config: TrainConfig, step: int) -> float:
    """The learning rate of `step` (0 … steps-1): linear warm-up, then the schedule down to final_lr · lr."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    start = config.steps - max(1, round(config.decay * config.steps)) if config.schedule == "wsd" else warmup
    done = min(1.0, max(0.0, (step + 1 - start) / max(1, config.steps - start)))  # share of the decay
    match config.schedule:
        case "constant":
            left = 1.0
        case "cosine":
            left = 0.5 * (1 + math.cos(math.pi * done))
        case _:
            left = 1 - done
    return config.lr * (config.final_lr + (1 - config.final_lr) * left)
