"""What one step trains on, and the plain loss over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
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
    what else a loss needs (advantages, reference log probabilities …); metrics: numbers to log with the step.
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
        """The batch on this device. Its tokens are counted before, which would make the CPU wait for a GPU."""
        extra = {name: tensor.to(device) for name, tensor in self.extra.items()}
        moved = Batch(self.inputs.to(device), self.targets.to(device), extra, self.metrics)
        vars(moved)["count"] = self.count
        return moved

    def split(self, parts: int) -> list[Batch]:
        """`parts` batches of consecutive rows, as even as possible. Raises ConfigError for fewer rows than parts."""
        rows = len(self.inputs)
        if rows < parts:
            raise ConfigError(
                f"micro_batches: {parts} were requested, but a step has only {rows} rows a process."
            )
        bounds = [i * rows // parts for i in range(parts + 1)]
        return [self._rows(slice(a, b)) for a, b in itertools.pairwise(bounds)]

    def _rows(self, rows: slice) -> Batch:
        return Batch(self.inputs[rows], self.targets[rows], {k: v[rows] for k, v in self.extra.items()})


Row = tuple[list[int], list[int]]  # token ids of a conversation, and 1 where the assistant wrote


def padded(rows: Sequence[Row], pad_id: int, width: int = 0) -> Batch:
    """Conversations as (N, T) inputs and targets, T at least `width`; only the assistant's tokens are targets."""
    width = max(width, max(len(ids) for ids, _ in rows) - 1)
    inputs = torch.full((len(rows), width), pad_id)
    targets = torch.full((len(rows), width), IGNORE)
    for i, (ids, mask) in enumerate(rows):
        inputs[i, : len(ids) - 1] = torch.tensor(ids[:-1])
        learn = torch.tensor(mask[1:], dtype=torch.bool)
        targets[i, : len(ids) - 1][learn] = torch.tensor(ids[1:])[learn]
    return Batch(inputs, targets)


Loss = Callable[[nn.Module, Batch], tuple[Tensor, int | Tensor]]


def token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Cross-entropy in nats, summed over the supervised tokens, and their count."""
    return model(batch.inputs, batch.targets, reduction="sum"), batch.count
