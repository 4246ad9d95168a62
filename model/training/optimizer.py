"""The optimiser: AdamW, or Muon for the matrices inside the blocks and AdamW for everything else.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon) replaces the momentum of a matrix, U·S·Vᵀ, by an
approximation of U·Vᵀ: all directions of an update become about equally large. NorMuon (arXiv 2510.05491) then makes
the neurons' shares of it equally large over time, by a running mean of squares as in Adam, one number a neuron.

Notable:
- neurons are rows or columns, whichever are more: orthogonalisation has already equalised the fewer ones;
- an update's root mean square is 0.2, the mean of AdamW's (Moonlight, arXiv 2502.16982), so that a learning rate and
  a weight decay that suit AdamW suit Muon too;
- matrices of one shape are orthogonalised together, as one batch;
- it updates whole weights or ZeRO's flat partitions: `place` declares which numbers of which weights a tensor holds.
  Momentum stays sharded; ranks sum their parts to whole matrices, each rank orthogonalises its share of them, and
  all ranks receive all (one reduce-scatter and one all-gather). The neurons' squares are few: every rank has all of
  them. DeepSpeed's own Muon computes in half precision and clips after orthogonalising, so its steps would differ
  between stages;
- where it sees whole gradients it clips them to one norm, and does nothing when that norm is not finite (under ZeRO
  DeepSpeed has done both before).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.training.snapshot import Part
from model.training.train_config import TrainConfig, matrices_at_once

if TYPE_CHECKING:
    from model.training.world import World

# Five steps of x -> a·x + b·x³ + c·x⁵ bring singular values from 0.01 … 1 to 0.7 … 1.2 (Keller Jordan, as above).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
# Momentum starts lower and grows over so many steps (Keller Jordan's NanoGPT speedrun): a short run, and the start of
# any run, is not slowed by gradients of outdated weights.
INITIAL_MOMENTUM, MOMENTUM_STEPS = 0.85, 300
RMS = 0.2  # of AdamW's usual updates, Moonlight, arXiv 2502.16982, section 2.2
NEURON_BETA = 0.9  # of the neurons' mean squares; the paper's 0.95 gave the same loss (docs/optimizer.md)
ADAM_KINDS, MUON_KINDS = ("exp_avg", "exp_avg_sq"), ("momentum",)  # moments, AdamW's as torch names them
NEURONS = "neuron_sq"
EPS = 1e-7  # added to divisors


class Optimizer(torch.optim.AdamW):
    """torch's fused AdamW; groups with `muon` set take Muon's step.

    sharded: the gradients are ZeRO's shards, already clipped and finite, not whole ones.
    """

    def __init__(
        self, groups: list[dict[str, Any]], config: TrainConfig, world: World, sharded: bool = False
    ):
        betas = (config.beta1, config.beta2)
        super().__init__(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
        self.world, self.sharded, self.momentum = world, sharded, config.momentum
        self.clip, self.grad_norm = config.clip, 0.0
        # Updates of each of Muon's tensors, counted on the CPU. ZeRO calls `step` once for every group.
        self._updates: dict[Tensor, int] = defaultdict(int)
        self.parts: dict[Tensor, list[Part]] = {}
        # Mean squares of the neurons of each of Muon's matrices, by the weight's name.
        self.neurons: dict[str, Tensor] = {}
        self._kinds: dict[Tensor, tuple[str, ...]] = {}

    def place(self, group: int, parts: Iterable[Part]) -> None:
        """Declare what the holders of these parts hold, in an order that is the same on every rank."""
        muon = self.param_groups[group]["muon"]
        for part in parts:
            self.parts.setdefault(part.holder, []).append(part)
            self._kinds[part.holder] = MUON_KINDS if muon else ADAM_KINDS
            if muon:
                self.neurons[part.name] = torch.zeros(max(part.shape), device=self.world.device)

    def moments(self, holder: Tensor) -> dict[str, Tensor]:
        """The moments of a placed tensor by name, each laid out like it; zeros before the first step."""
        state, kinds = self.state[holder], self._kinds[holder]
        if not state:
            state["step"] = torch.zeros((), device=holder.device)
            state |= {kind: torch.zeros_like(holder, requires_grad=False) for kind in kinds}
        return {kind: state[kind] for kind in kinds}

    @property
    def updates(self) -> int:
        """Updates so far."""
        steps = [state["step"] for state in self.state.values() if state]
        return int(torch.stack(steps).max()) if steps else 0

    @updates.setter
    def updates(self, number: int) -> None:
        for holder, state in self.state.items():
            state["step"].fill_(number)
            self._updates[holder] = number

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no loss here
        """Update all weights from their gradients; nothing changes where the norm to clip is not finite."""
        groups = self.param_groups
        if not self.sharded and not self._clip():
            return
        for group in groups:
            if group["muon"]:
                self._muon_step(group)
        # AdamW's own step goes over param_groups and must not see Muon's.
        self.param_groups = [group for group in groups if not group["muon"]]
        super().step()
        self.param_groups = groups

    def _clip(self) -> bool:
        """Clip all gradients to one norm; False if that is not finite."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        # By rows first: torch's norm of all 38 million numbers of an embedding at once, on a CPU, is 0.08 % too small.
        norm = torch.nn.utils.get_total_norm([torch.linalg.vector_norm(p.grad, dim=-1) for p in weights])
        self.grad_norm = float(norm)
        if math.isfinite(self.grad_norm) and self.clip:
            torch.nn.utils.clip_grads_with_norm_(weights, self.clip, norm)
        return math.isfinite(self.grad_norm)

    def _muon_step(self, group: dict[str, Any]) -> None:
        """Nesterov momentum, orthogonalised, neurons normalised; gradients are overwritten."""
        holders = [p for p in group["params"] if p.grad is not None]
        if not holders:
            return
        gradients = [p.grad for p in holders]
        momenta = [self.moments(p)["momentum"] for p in holders]
        torch._foreach_add_([self.state[p]["step"] for p in holders], 1)
        momentum = momentum_at(self.momentum, self._updates[holders[0]])
        for p in holders:
            self._updates[p] += 1
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        torch._foreach_lerp_(gradients, momenta, momentum)
        torch._foreach_mul_(holders, 1 - group["lr"] * group["weight_decay"])
        for parts in self._batches(part for p in holders for part in self.parts[p]):
            updates = normalise_neurons(self._orthogonal(parts), [self.neurons[part.name] for part in parts])
            if slices := _slices(updates, parts):
                weights = [part.of(part.holder) for part in parts if part.numel]
                slices = [update.to(weights[0]) for update in slices]
                torch._foreach_add_(weights, slices, alpha=-group["lr"] * RMS)

    def _batches(self, parts: Iterable[Part]) -> Iterator[list[Part]]:
        """Parts of matrices of one shape, as many as are orthogonalised together."""
        by_shape: dict[torch.Size, list[Part]] = defaultdict(list)
        for part in parts:
            by_shape[part.shape].append(part)
        for shape, same in by_shape.items():
            n = self.world.size * matrices_at_once(shape)
            yield from (same[i : i + n] for i in range(0, len(same), n))

    def _orthogonal(self, parts: list[Part]) -> Tensor:
        """The orthogonalised gradients of the whole matrices (N, rows, columns) of which this rank has `parts`."""
        world = self.world
        share = -(-len(parts) // world.size)  # matrices a rank, rounded up
        dtype = torch.bfloat16 if world.device.type == "cuda" else torch.float32
        batch = torch.zeros(share * world.size, *parts[0].shape, dtype=dtype, device=world.device)
        if slices := _slices(batch, parts):
            torch._foreach_copy_(slices, [part.gradient() for part in parts if part.numel])
        if world.size == 1:
            return orthogonalize(batch)
        mine = batch[world.rank * share : (world.rank + 1) * share]
        if self.sharded:
            # Each number is on one rank and zero on the others: the sum is exact.
            torch.distributed.reduce_scatter_tensor(mine := torch.empty_like(mine), batch)
        torch.distributed.all_gather_into_tensor(batch, orthogonalize(mine))
        return batch[: len(parts)]


def momentum_at(final: float, step: int) -> float:
    """Muon's momentum in a step: from 0.85 linearly to `final` at step 300."""
    initial = min(final, INITIAL_MOMENTUM)
    return initial + (final - initial) * min(1.0, step / MOMENTUM_STEPS)


def _slices(matrices: Tensor, parts: list[Part]) -> list[Tensor]:
    """The numbers that this rank holds of matrices (N, R, C) whose first ones are those of `parts`; flat."""
    rows = matrices.flatten(1)
    return [rows[i, p.start : p.start + p.numel] for i, p in enumerate(parts) if p.numel]


def orthogonalize(matrices: Tensor) -> Tensor:
    """U·S·Vᵀ (…, R, C) -> U·S'·Vᵀ with S' within about 0.7 to 1.2, by Newton-Schulz; zero stays zero."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + EPS)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT.contiguous() if tall else x


def normalise_neurons(updates: Tensor, squares: list[Tensor]) -> Tensor:
    """Updates (N, R, C), each neuron divided by its root mean square over time, each matrix by its current one.

    squares: N running means, of max(R, C) numbers each; updated in place. Returns float32; zero stays zero.
    """
    updates = updates.float()
    within = -1 if updates.shape[-2] >= updates.shape[-1] else -2
    torch._foreach_lerp_(squares, list(updates.square().mean(within)), 1 - NEURON_BETA)
    updates = updates / (torch.stack(squares).sqrt().unsqueeze(within) + EPS)
    size = updates.square().mean((-2, -1), keepdim=True).sqrt()
    return updates / (size + EPS)


def param_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The weights in groups: matrices that Muon updates, other matrices, and gains and biases, which do not decay.

    Muon's are the matrices inside the blocks (arXiv 2502.16982, section 2.2). `relative_lr` is a group's learning
    rate as a multiple of the step's.
    """
    kinds: dict[str, list[nn.Parameter]] = {"muon": [], "matrix": [], "vector": []}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            inside = config.optimizer == "muon" and weight.ndim == 2 and ".layers." in f".{name}"
            kinds["vector" if weight.ndim < 2 else "muon" if inside else "matrix"].append(weight)
    matrix_lr = config.matrix_lr / config.lr if config.matrix_lr and config.lr else 1.0
    return [
        {
            "params": weights,
            "muon": kind == "muon",
            "relative_lr": matrix_lr if kind == "muon" else 1.0,
            "weight_decay": 0.0 if kind == "vector" else config.weight_decay,
        }
        for kind, weights in kinds.items()
        if weights
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, each relative to the step's."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["relative_lr"]
