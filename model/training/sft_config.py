"""The settings of supervised fine-tuning: the section `sft_model` of params.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import ConfigError
from model.training.scaling_recipe import LR_WIDTH
from model.training.train_config import TrainConfig

LR = 4.5e-3  # the best of 2e-3, 3e-3 and 4.5e-3 on the demo, at a width of LR_WIDTH


@dataclass(frozen=True)
class SftConfig(TrainConfig):
    """The section `sft_model` of params.yaml. `mixture` and `extra_datasets` are read by evals/probes.py."""

    epochs: float = 3.0  # passes over the conversations
    batch_rows: int = 64  # conversations a step, over all processes
    max_tokens: int = 512  # longer conversations are left out, and counted
    lr: float = 0.0  # the peak; 0: 4.5e-3 · 128 / the model's width
    schedule: str = "linear"
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.0  # matrices only
    steps: int = 1  # follows from epochs; a value given here is not used
    log_every: int = 5  # steps
    heldout_rows: int = 256  # held-out conversations whose loss is measured
    mixture: Mapping[str, Any] = field(default_factory=dict)
    extra_datasets: Sequence[Any] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs <= 0 or self.batch_rows < 1:
            raise ConfigError("sft_model: epochs and batch_rows must be greater than 0.")

    def planned(self, rows: int, d_model: int) -> SftConfig:
        """This configuration with its learning rate, and the number of steps for its epochs of `rows` conversations."""
        steps = max(1, round(self.epochs * rows / self.batch_rows))
        return dataclasses.replace(self, steps=steps, lr=self.lr or LR * LR_WIDTH / d_model)
