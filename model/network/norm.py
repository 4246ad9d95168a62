"""RMSNorm (arXiv 1910.07467) with a backward pass written out for CPUs.

A GPU has one kernel for it and the compiler generates one. On a CPU torch composes it of plain operations, and its
backward pass traverses the whole input some ten times; written by hand it is four times, and of all activations only
the input is stored: up to three times as fast (docs/training-speed.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis, computed in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (…, C) -> (…, C) of the same type."""
        wide, weight = x.float(), self.weight.float()
        if x.is_cuda or torch.compiler.is_compiling():
            out = F.rms_norm(wide, weight.shape, weight, self.eps)
        elif torch.is_grad_enabled():
            out = _RMSNorm.apply(wide, weight, self.eps)
        else:
            out = (wide * _inverse_rms(wide, self.eps)).mul_(weight)
        return out.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """With r = 1/rms(x), y = x·r·w: ∂L/∂x = r·(g·w − x · r²/C · Σ g·w·x), and ∂L/∂w = Σ g·x·r over the tokens."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = _inverse_rms(x, eps)
        ctx.save_for_backward(x, r, weight)
        return (x * r).mul_(weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, r, weight = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):  # float32 stays float32
            gx = (g * x).flatten(0, -2)
            for_weight = torch.mv(gx.t(), r.flatten())
            along_x = torch.mv(gx, weight).view_as(r) * r.square() / -x.shape[-1]
            return (g * weight).addcmul_(x, along_x).mul_(r), for_weight, None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x²) + eps) over the last axis, which is kept: (…, 1). No tensor of x's size is allocated."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
