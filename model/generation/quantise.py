"""Int8 weights for inference: a quarter of float32's memory, and on CPUs with VNNI several times its speed.

Notable:
- weight-only, symmetric, one scale per output channel: w ≈ q · scale, q in -127 … 127. Embeddings and norms stay;
- CPUs multiply int8 by int8. To keep the activations' precision, each is written as two int8 digits, n = 128·high +
  low: 15 bits relative to the largest of its token (bfloat16 has 8), and both go through one product;
- on other devices the weights are converted for each product: exact, and small, but no faster.
It is for a model in memory: `quantise(load_pretrained(folder)[0])`. Its cost in bits per byte: docs/generation.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.config import IGNORE
from model.network.loss import LOGITS_AT_ONCE, Head
from model.network.transformer import Transformer

BASE = 128  # of the two digits of an activation
TOP = 127 * BASE  # the largest activation of a token becomes this


def quantise(model: Transformer) -> Transformer:
    """Replace the model's linear layers, its head included, by int8 ones, and return it."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                kind = Int8Head if isinstance(child, Head) else Int8Linear
                setattr(module, name, kind.of(child.weight))
    return model.requires_grad_(False).eval()


class Int8Linear(nn.Module):
    """x -> x · (weight · scale)ᵀ, with weight (out, in) int8 and scale (out,) float32."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    @classmethod
    def of(cls, weight: Tensor) -> Int8Linear:
        """Round a matrix (out, in) to int8."""
        wide = weight.detach().float()
        scale = wide.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        return cls((wide / scale[:, None]).round().to(torch.int8), scale)

    @classmethod
    def merged(cls, parts: Sequence[Int8Linear]) -> Int8Linear:
        """One layer for several that have the same input; their outputs are concatenated."""
        if len(parts) == 1:
            return parts[0]
        return cls(torch.cat([part.weight for part in parts]), torch.cat([part.scale for part in parts]))

    @property
    def out_features(self) -> int:
        return len(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in), any float type -> (…, out) of the same type."""
        rows = x.reshape(-1, x.shape[-1])
        product = two_digit_product if x.device.type == "cpu" and int_mm_is_exact() else widened_product
        return product(rows, self.weight, self.scale).to(x.dtype).view(*x.shape[:-1], -1)

    def _save_to_state_dict(self, *_: object) -> None:
        raise ValueError(
            "A model with int8 weights is for use in memory: no other program would read its folder. "
            "Save the model before you quantise it."
        )


class Int8Head(Int8Linear):
    """Head in int8: hidden states to logits or, given targets, to the loss of each token in nats."""

    def forward(
        self,
        x: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        reduction: str = "none",
    ) -> Tensor:
        """x (…, C) -> logits (…, V) in x's type; with targets (…) of int64, the losses (…) in nats, float32."""
        if targets is None:
            return super().forward(x)
        if reduction != "none" or weights is not None:
            raise ValueError(
                "A model with int8 weights is not for training: it gives the losses of single tokens."
            )
        rows = max(1, LOGITS_AT_ONCE.get(x.device.type, 2**24) // self.out_features)
        parts = zip(x.flatten(0, -2).split(rows), targets.flatten().split(rows), strict=True)
        losses = [
            F.cross_entropy(
                super(Int8Head, self).forward(states).float(), labels, ignore_index=IGNORE, reduction="none"
            )
            for states, labels in parts
        ]
        return torch.cat(losses).view(targets.shape)


def two_digit_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (B, in) float, weight (out, in) int8, scale (out,) -> (B, out) float32, by int8 products alone."""
    x = x.float()
    unit = x.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny).div_(TOP)
    whole = (x / unit).round_()
    high = (whole / BASE).round_()
    digits = torch.cat((high, whole.sub_(high, alpha=BASE))).to(torch.int8)
    high, low = torch._int_mm(digits, weight.t()).chunk(2)  # int32: exact up to 133,000 inputs
    return high.float().mul_(BASE).add_(low).mul_(unit).mul_(scale)


def widened_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The same without int8 arithmetic: weights converted to the type of x."""
    return x @ weight.to(x.dtype).t() * scale


@functools.cache
def int_mm_is_exact() -> bool:
    """Whether this CPU's int8 product is exact: before VNNI, sums of two products could saturate at 16 bits."""
    if not torch.backends.mkldnn.is_available():
        return False  # torch falls back to a plain loop, which is slow
    extremes = torch.tensor([[127], [-127]], dtype=torch.int8).expand(2, 64).contiguous()
    return torch.equal(torch._int_mm(extremes, extremes.t()).long(), extremes.long() @ extremes.long().t())
