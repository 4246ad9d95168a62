"""The output matrix and the cross-entropy after it, which never holds all logits at once.

With a large vocabulary the logits of a step are its largest tensor by far: 1,024 tokens of GPT-2's 50,257 take
206 MB in float32, as much again for their gradient, and more time to be written and read than to be computed with.
So the tokens are processed in chunks, as in Liger-Kernel (arXiv 2410.10989). A chunk is a few tokens with their whole
vocabulary, unlike CCE's (arXiv 2411.09009), so torch's own matrix products suffice.

Notable:
- for a sum of losses, the upstream gradient of each token's loss is known in advance (its weight), so the forward
  pass computes the gradients too, while the chunk's logits are in memory: no logits are computed twice;
- losses of single tokens are possible as well; their backward pass computes the logits a second time;
- `Head` is a module that owns its matrix, because ZeRO 3 gathers a weight only inside its module's forward.

Letters in shapes: N tokens, n tokens of a chunk, C width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from model.network.config import IGNORE, LOGITS_AT_ONCE


class Head(nn.Linear):
    """Hidden states to logits or, given targets, to losses."""

    def __init__(self, d_model: int, vocab_size: int):
        super().__init__(d_model, vocab_size, bias=False)

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        reduction: str = "none",
    ) -> Tensor:
        """hidden (…, C) -> logits (…, V); with targets (…) of int64, what `cross_entropy` returns."""
        if targets is None:
            return super().forward(hidden)
        compiled = torch.compiler.is_compiling()
        return cross_entropy(hidden, self.weight, targets, weights, reduction, compiled)


@torch.compiler.disable  # the compiler would unroll the chunks; only what is done within one is compiled
def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    reduction: str = "none",
    compiled: bool = False,
) -> Tensor:
    """Cross-entropy in nats of hidden (…, C) @ weight.T (V, C) with targets (…), float32.

    reduction "none": the loss of each token (…), 0 where the target is IGNORE. "sum": their sum, each multiplied
    by its weight if weights (…) are given, which get no gradient; this one is faster to train with.
    compiled: compile what is done to the logits of a chunk. Raises ValueError for another reduction.
    """
    if reduction not in ("none", "sum") or (weights is not None and reduction == "none"):
        raise ValueError(
            f"reduction={reduction!r}: 'none' gives the loss of each token, 'sum' their sum, the only one that takes "
            "weights. Multiply single losses by their weights yourself."
        )
    states, labels = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    supervised = labels != IGNORE
    scale = (
        supervised.float() if weights is None else torch.where(supervised, weights.reshape(-1).float(), 0.0)
    )
    labels = labels.masked_fill(~supervised, 0)
    indices = _indices(supervised)
    if indices is not None:
        states, labels, scale = states[indices], labels[indices], scale[indices]
    if reduction == "sum":
        needs_gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
        return _Sum.apply(states, weight, labels, scale, needs_gradients, compiled)
    losses = _Each.apply(states, weight, labels, scale, compiled)
    if indices is not None:
        losses = losses.new_zeros(targets.numel()).index_put((indices,), losses)
    return losses.view(targets.shape)


def _indices(supervised: Tensor) -> Tensor | None:
    """Where supervised (N,) is true, so that only these tokens are computed. None: compute all; also where reading
    the number of tokens would wait for a GPU, and where tensors have no values (estimate.py)."""
    if supervised.is_cuda or is_fake(supervised) or supervised.all():
        return None
    return supervised.nonzero()[:, 0]


class _Sum(torch.autograd.Function):
    """Σ scale · loss, whose gradients the forward pass computes."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor,
        needs_gradients: bool,
        compiled: bool,
    ) -> Tensor:
        dtype = _compute_dtype(states, weight)
        by = scale if needs_gradients else None
        losses, *gradients = _in_chunks(states, weight, targets, by, dtype, compiled)
        ctx.save_for_backward(*gradients)
        return (losses * scale).sum()  # a product with @ would be computed in bfloat16 under autocast

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        for_states, for_weight = ctx.saved_tensors
        # In place: nothing else refers to them, and torch itself refuses a second backward pass over the same graph.
        return for_states.mul_(upstream), for_weight.mul_(upstream), None, None, None, None


class _Each(torch.autograd.Function):
    """scale · loss of each token, scale being 0 or 1; the backward pass computes the chunks a second time."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, compiled: bool
    ) -> Tensor:
        ctx.save_for_backward(states, weight, targets, scale)
        ctx.how = _compute_dtype(states, weight), compiled
        (losses,) = _in_chunks(states, weight, targets, None, *ctx.how)
        return losses * scale

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, targets, scale = ctx.saved_tensors
        _, *gradients = _in_chunks(states, weight, targets, upstream * scale, *ctx.how)
        return *gradients, None, None, None


def _in_chunks(
    states: Tensor, weight: Tensor, targets: Tensor, scale: Tensor | None, dtype: torch.dtype, compiled: bool
) -> tuple[Tensor, ...]:
    """Losses (N,) of states (N, C); with scale (N,) also the gradients of Σ scale · loss for states and weight.

    dtype: the type of matrix products; everything else is computed in float32.
    """
    most = max(1, LOGITS_AT_ONCE[states.device.type] // len(weight))
    # Chunks of equal size: a small last one would cost almost as much as the others.
    size = max(1, math.ceil(len(states) / max(1, math.ceil(len(states) / most))))
    normalise = _compiled_normalise if compiled else _normalise
    with torch.autocast(states.device.type, enabled=False):
        inputs, matrix = states.to(dtype), weight.to(dtype)
        losses = states.new_empty(len(states), dtype=torch.float32)
        for_weight: Tensor | None = None
        if scale is not None:
            for_states = torch.empty_like(states)
            for_weight = None if len(states) else torch.zeros_like(weight)
        buffer = matrix.new_empty(min(size, len(states)), len(weight))  # allocated once, not for every chunk
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            logits = torch.mm(inputs[part], matrix.t(), out=buffer[: len(targets[part])])
            losses[part], total, unscaled = normalise(logits, targets[part, None])
            if scale is None:
                continue
            # The (n, C) sides of the products are divided and scaled, not the (n, V) one.
            by = scale[part, None] / total
            for_states[part] = (unscaled @ matrix) * by
            for_weight = _plus_product(for_weight, unscaled.t(), (inputs[part] * by).to(dtype))
        if for_weight is None:  # no scale, no gradients
            return (losses,)
        return losses, for_states, for_weight.to(weight.dtype)


def _normalise(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, V), which are overwritten if float32, and targets (n, 1) -> losses (n,), totals (n, 1) and, in the
    logits' type, (n, V): totals times the gradient of each loss, that is softmax minus one at the target."""
    target_logits = logits.gather(1, targets).float()
    top = logits.amax(1, keepdim=True).float()
    exp = logits.float().sub_(top).exp_()
    total = exp.sum(1, keepdim=True)
    losses = total.log() + top - target_logits
    at_target = ((target_logits - top).exp() - total).to(logits.dtype)
    return losses[:, 0], total, exp.to(logits.dtype).scatter_(1, targets, at_target)


_compiled_normalise = torch.compile(_normalise, dynamic=False)


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b in float32, in place where there is a total already."""
    if total is None:
        return (a @ b).float()
    return total.addmm_(a, b) if a.dtype == total.dtype else total.add_(a @ b)


def _compute_dtype(states: Tensor, weight: Tensor) -> torch.dtype:
    """The type in which a linear layer would compute here."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
