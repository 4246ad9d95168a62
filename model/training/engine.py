"""The engine of a training: backward, step, snapshot and load behind one interface; here the one in plain torch.

Notable:
- gradients are of the loss *summed* over tokens, divided by the count of supervised tokens of the whole step, over all
  ranks and micro-batches: a row without supervised tokens weighs nothing and never divides by zero;
- a step whose gradient norm is not finite changes nothing, in every engine and ZeRO stage;
- weights are float32 always; `precision: bf16` computes under autocast, and fp8 in float8 as well (float8.py). So all
  stages and both engines agree to float tolerance;
- there is one optimiser for all (optimizer.py). It knows which numbers of which weights its tensors hold, and so do
  checkpoints, which any engine, stage and number of ranks can read (snapshot.py).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.training.optimizer import NEURONS, Optimizer, param_groups, set_lr
from model.training.snapshot import WEIGHT, Part, Saved, Snapshot
from model.training.train_config import TrainConfig
from model.training.world import World


class Engine:
    """A model in training. `model` is called for the loss; `module` has the weights."""

    model: nn.Module
    module: nn.Module
    optimizer: Optimizer

    def __init__(self, config: TrainConfig, world: World):
        self.config, self.world = config, world

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A context that computes in the configured precision."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.half)

    def backward(self, loss_sum: Tensor, count: float) -> None:
        """Accumulate the gradient of loss_sum / count; count: tokens of the whole step over all ranks."""
        raise NotImplementedError

    def step(self, lr: float) -> float:
        """Clip, update, clear gradients. Returns the norm before clipping; if not finite, nothing was changed."""
        raise NotImplementedError

    def parts(self) -> Iterator[Part]:
        """The parts that this rank writes into snapshots; together the ranks write every number once."""
        raise NotImplementedError

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """A copy of the current weights and moments; every rank takes and writes its own part."""
        pieces = {}
        for part in self.parts():
            for kind, tensor in self._kinds(part):
                copy = part.of(tensor).to("cpu", copy=True)
                pieces[f"{part.name}/{kind}/{part.start}"] = copy
        for part in itertools.islice(self._neurons(), self.world.rank, None, self.world.size):
            pieces[f"{part.name}/{NEURONS}/0"] = part.holder.to("cpu", copy=True)
        return Snapshot(self.world.rank, pieces, self.optimizer.updates)

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state into `folder`; every rank calls it."""
        self.snapshot().write(folder)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read a snapshot of any engine, stage and number of ranks; every rank calls it. Raises CheckpointError."""
        saved = Saved(folder)
        for parts in self.optimizer.parts.values():
            for part in parts:
                for kind, tensor in self._kinds(part):
                    saved.fill(part, kind, tensor)
        for part in self._neurons():
            saved.fill(part, NEURONS, part.holder)
        self.optimizer.updates = saved.updates

    def _kinds(self, part: Part) -> list[tuple[str, Tensor]]:
        """The tensors that hold numbers of this part, by kind."""
        return [(WEIGHT, part.holder), *self.optimizer.moments(part.holder).items()]

    def _neurons(self) -> Iterator[Part]:
        """The neurons' squares of Muon's matrices, which every rank holds."""
        for name, squares in self.optimizer.neurons.items():
            yield Part(name, squares.shape, squares, 0, 0, squares.numel())

    def gathered(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which `module` has whole weights on every rank (ZeRO 3 shards them otherwise)."""
        return contextlib.nullcontext()


class TorchEngine(Engine):
    """Plain torch; ranks sum their gradients."""

    def __init__(self, model: nn.Module, config: TrainConfig, world: World):
        super().__init__(config, world)
        self.model = self.module = model.to(world.device)
        self.optimizer = Optimizer(param_groups(model, config), config, world)
        place_whole(self.optimizer, model)

    def backward(self, loss_sum: Tensor, count: float) -> None:
        (loss_sum / count).backward()

    def step(self, lr: float) -> float:
        if self.world.size > 1:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])  # one message instead of one for each weight
            torch.distributed.all_reduce(flat)
            parts = flat.split([g.numel() for g in gradients])
            torch._foreach_copy_(gradients, [f.view_as(g) for f, g in zip(parts, gradients, strict=True)])
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.optimizer.grad_norm

    def parts(self) -> Iterator[Part]:
        return share_of_whole(self.optimizer, self.world)


def place_whole(optimizer: Optimizer, model: nn.Module) -> None:
    """Declare that every weight is held whole, by itself."""
    names = {weight: name for name, weight in model.named_parameters()}
    for i, group in enumerate(optimizer.param_groups):
        optimizer.place(i, (Part(names[p], p.shape, p, 0, 0, p.numel()) for p in group["params"]))


def share_of_whole(optimizer: Optimizer, world: World) -> Iterator[Part]:
    """Of weights that every rank holds whole, each rank writes every size-th."""
    parts = (part for parts in optimizer.parts.values() for part in parts)
    return itertools.islice(parts, world.rank, None, world.size)


def checkpoint_activations(model: nn.Module) -> None:
    """Make each block keep only its input and recompute the rest in backward; nothing in it is random."""
    for block in model.get_submodule("layers").children():
        block.forward = functools.partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )
