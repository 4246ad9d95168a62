"""What one step trains on, and the plainest loss over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from core.errors import ConfigError
from model.network.config import IGNORE


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one step. All tensors have the rows as their first axis.

    inputs (N, T) token ids; targets (N, T) the ids to predict, IGNORE (-100) where nothing is supervised; extra:
    what a loss needs besides (advantages, old log probabilities …); metrics: numbers to log with the step.
    """

    inputs: Tensor
    targets: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @cached_property
    def count(self) -> int:
        """Supervised tokens."""
        return int((self.targets != IGNORE).sum())

    def to(self, device: torch.device) -> Batch:
        """The batch on this device, its tokens counted before: a GPU would be waited for."""
        extra = {name: tensor.to(device) for name, tensor in self.extra.items()}
        moved = Batch(self.inputs.to(device), self.targets.to(device), extra, self.metrics)
        vars(moved)["count"] = self.count
        return moved

    def split(self, parts: int) -> list[Batch]:
        """`parts` batches of consecutive rows, as even as can be."""
        rows = len(self.inputs)
        if rows < parts:
            raise ConfigError(
                f"micro_batches: {parts} are asked for, and the step has {rows} rows a process."
            )
        bounds = [i * rows // parts for i in range(parts + 1)]
        return [self._rows(slice(a, b)) for a, b in itertools.pairwise(bounds)]

    def _rows(self, rows: slice) -> Batch:
        return Batch(self.inputs[rows], self.targets[rows], {k: v[rows] for k, v in self.extra.items()})


Loss = Callable[[nn.Module, Batch], tuple[Tensor, int | Tensor]]


def token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Cross-entropy in nats, summed over the supervised tokens, and their count."""
    return model(batch.inputs, batch.targets, reduction="sum"), batch.count
