"""What a training will take, before its first step: parameters, operations, memory, time.

Notable:
- what ZeRO shards is divided by the number of ranks (arXiv 1910.02054, section 3); what lives within a step comes from
  step_memory.py;
- time is measured where the training will run (trial.py); for hardware that is elsewhere it is operations divided by
  the published peak and the share of it that comparable trainers reach (plan.py);
- `fit_to_memory` picks the lowest ZeRO stage that fits, because each stage communicates more than the previous one.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TypeVar

from core.errors import ConfigError
from model.network.config import Config
from model.training.step_memory import FP32, step_bytes
from model.training.train_config import TrainConfig

MIN_MICRO_BATCH = 4096  # tokens; smaller parts of a step leave a GPU idle between kernels
USABLE = 0.9  # of the memory; the rest is for the allocator, NCCL and the work space of kernels
C = TypeVar("C", bound=TrainConfig)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at a step's peak."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # and everything else that lives within a step

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Estimate:
    """A training in numbers. seconds: None where nothing is known about the hardware."""

    parameters: int
    flops_per_token: int
    tokens: int
    steps: int
    memory: Memory
    seconds: float | None = None

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole training."""
        return float(self.flops_per_token) * self.tokens

    def sentence(self) -> str:
        """All of it in one line."""
        took = f", {duration(self.seconds)}" if self.seconds is not None else ""
        return (
            f"{self.parameters:,} parameters, {self.steps:,} steps, {self.tokens:,} tokens, {self.flops:.2g} FLOPs, "
            f"{size(self.memory.total)} of memory a process{took}"
        )


def estimate(shape: Config, config: TrainConfig, rows: int, seq_len: int, ranks: int = 1) -> Estimate:
    """The numbers of a training except its time. rows: rows a step of seq_len tokens, over all ranks."""
    parameters = shape.num_params()
    part = max(1, rows // ranks // config.micro_batches)
    working = step_bytes(shape, config, part, seq_len, ranks)
    return Estimate(
        parameters=parameters,
        flops_per_token=shape.flops_per_token(seq_len),
        tokens=config.steps * rows * seq_len,
        steps=config.steps,
        memory=sharded(FP32 * parameters, optimizer_bytes(shape, config), working, config.zero_stage, ranks),
    )


def sharded(weights: int, states: int, working: int, zero_stage: int, ranks: int) -> Memory:
    """What one of `ranks` devices holds: ZeRO 1 shards the optimiser, 2 the gradients too, 3 the weights too."""
    return Memory(
        weights=weights // ranks if zero_stage == 3 else weights,
        gradients=weights // ranks if zero_stage >= 2 else weights,
        optimizer=states // ranks if zero_stage >= 1 else states,
        activations=working,
    )


def optimizer_bytes(shape: Config, config: TrainConfig) -> int:
    """Two moments a parameter for AdamW; Muon keeps one for the matrices of the blocks."""
    weights = shape.weight_shapes().items()
    matrices = sum(math.prod(s) for name, s in weights if name.startswith("layers.") and len(s) == 2)
    single = matrices if config.optimizer == "muon" else 0
    return FP32 * (2 * shape.num_params() - single)


def fit_to_memory(shape: Config, config: C, rows: int, seq_len: int, ranks: int, memory: float) -> C:
    """config with the lowest ZeRO stage, micro-batches and activation checkpointing that fit into `memory` bytes.

    Tried in the order of what they cost: first more micro-batches (nothing, down to 4,096 tokens each), then the next
    stage (communication), at last computing activations twice (a third more work). Raises ConfigError where even that
    does not fit.
    """
    weights, states = FP32 * shape.num_params(), optimizer_bytes(shape, config)
    rows //= ranks
    for twice in (False, True):
        tried = dataclasses.replace(config, activation_checkpointing=twice)
        working = {
            n: step_bytes(shape, tried, rows // n, seq_len, ranks) for n in _micro_batches(rows, seq_len)
        }
        for stage in range(4 if ranks > 1 else 1):
            for parts, n_bytes in working.items():
                least = sharded(weights, states, n_bytes, stage, ranks).total
                if least <= USABLE * memory:
                    return dataclasses.replace(tried, zero_stage=stage, micro_batches=parts)
    raise ConfigError(
        f"A model of {shape.num_params():,} parameters does not fit: it takes at least {size(least)} on each of "
        f"{ranks} devices, and one has {size(memory)}. Use more devices or a smaller depth, or offload the optimiser "
        "(offload: optimizer)."
    )


def _micro_batches(rows: int, seq_len: int) -> list[int]:
    """Numbers of parts, 1, 2, 4 … that divide the rows and leave each part large enough to be worth a pass."""
    most = max(1, rows * seq_len // MIN_MICRO_BATCH)
    return [2**i for i in range(most.bit_length()) if 2**i <= most and rows % 2**i == 0]


def size(n_bytes: float) -> str:
    """1,500,000,000 -> 1.5 GB."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """4,000 -> 1 h 7 min."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 2:
        return f"{seconds:.0f} s"
    if hours < 2:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if days < 2 else f"{days:.1f} days"
