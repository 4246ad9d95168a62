"""How a model is trained: the settings that base model, SFT and reinforcement learning share, and the schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.run_log import ConfigError

SCHEDULES = ("constant", "linear", "cosine", "wsd")
OFFLOAD = {"none": 0, "optimizer": 1, "parameters": 3}  # to the CPU's memory: the ZeRO stage that each needs


@dataclass(frozen=True)
class TrainConfig:
    """What the loop needs to know. Configurations of scripts inherit from it and add their own fields."""

    steps: int = 1000  # optimiser steps
    optimizer: str = "adamw"  # or muon: for the matrices inside the blocks, AdamW for the rest
    lr: float = 3e-3  # the highest
    matrix_lr: float = 0.0  # the highest of Muon's; 0: lr
    momentum: float = 0.95  # Muon's, after 300 steps; 0.85 at first
    schedule: str = "wsd"  # constant, linear, cosine, or wsd: warm up, stay, decay (arXiv 2404.06395)
    warmup: float = 0.02  # share of the steps
    decay: float = 0.3  # share of the steps, at the end; wsd only
    final_lr: float = 0.0  # as a share of lr
    weight_decay: float = 0.1  # matrices only
    beta1: float = 0.9
    beta2: float = 0.95  # GPT-3, arXiv 2005.14165, appendix B
    eps: float = 1e-8
    clip: float = 1.0  # gradient norm; 0: never
    micro_batches: int = 1  # parts a step is computed in, to save memory
    # fp32; bf16: compute in bfloat16 under autocast, weights stay float32; fp8: the blocks' matrices in float8 besides.
    precision: str = "fp32"
    engine: str = "deepspeed"  # or torch; torch too where DeepSpeed is not installed
    zero_stage: int = 0  # DeepSpeed ZeRO 0 to 3
    offload: str = "none"  # to the CPU's memory: optimizer, its moments and step; or parameters too
    activation_checkpointing: bool = False  # keep a block's input alone, compute the block again in backward
    threads: int = 2  # CPU threads of each process; the last bits of a result depend on it
    compile: bool = False  # torch.compile; on CPU it needs a C++ compiler
    seed: int = 0
    log_every: int = 1  # steps
    eval_every: int = 0  # steps; 0: only after the last
    checkpoint_every: int = 100  # steps; one is made after the last in any case
    keep_checkpoints: int = 2  # the newest; the best one besides, where the script names what is best
    keep_best: bool = True
    # Times that a run whose loss spikes may go back (model/training/stability.py); 0: no such rule.
    rollbacks: int = 0
    stats_every: int = 100  # steps; how far each layer moves (model/training/meter.py); 0: never

    def __post_init__(self):
        choices = {"optimizer": ("adamw", "muon"), "schedule": SCHEDULES}
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


def lr_at(config: TrainConfig, step: int) -> float:
    """The learning rate of step 0 … steps-1: linear warm-up, then the schedule down to final_lr · lr."""
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
