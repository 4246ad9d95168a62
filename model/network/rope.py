"""Rotary positions (RoFormer, arXiv 2104.09864) and three ways to scale them to a longer context.

Pair i of a head is rotated by the angle position · theta^(-2i/D). A model trained on short texts can be used on longer
ones if its low frequencies are lowered further; the high ones, which tell neighbours apart, must stay unchanged:
- linear (arXiv 2306.15595): every frequency divided by `factor`; simple, but neighbours become harder to tell apart;
- llama3 (Llama 3.1, arXiv 2407.21783): low frequencies divided by `factor`, high ones not, a linear ramp between;
- yarn (arXiv 2309.00071): the same idea with another ramp, and attention logits multiplied by a constant.
The arithmetic is that of `transformers`, operation by operation: the frequencies are equal to the last bit.
"""

import math

import torch
from torch import Tensor

from model.network.config import RopeScaling


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians per token by which each of the D/2 pairs is rotated, float32 (D/2,)."""
    periods = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    # Divided, not raised to the negative power: an error in the last bit is multiplied by the position.
    frequencies = 1.0 / periods
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    return _yarn(periods, theta, scaling)


def rope_tables(
    positions: int, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (positions, D) of each pair's angle, once for each half of a head; float32."""
    frequencies = rope_frequencies(head_dim, theta, scaling)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    amplitude = 1.0 if scaling is None else scaling.amplitude
    return angles.cos() * amplitude, angles.sin() * amplitude


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + D/2) of x (…, D) by its angle: the layout of the Llama and Qwen checkpoints.

    x · cos + (−right, left) · sin, with the minus moved to the sines, which are the smaller tensor.
    """
    half = x.shape[-1] // 2
    signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    return torch.addcmul(x * cos, x.roll(half, dims=-1), signed)


def _llama3(frequencies: Tensor, s: RopeScaling) -> Tensor:
    wavelengths = 2 * math.pi / frequencies  # tokens per rotation
    shortest, longest = (s.original_max_seq_len / f for f in (s.high_freq_factor, s.low_freq_factor))
    rotations = s.original_max_seq_len / wavelengths
    ramp = (rotations - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    between = (1 - ramp) * frequencies / s.factor + ramp * frequencies
    lowered = torch.where(wavelengths > longest, frequencies / s.factor, between)
    return torch.where(wavelengths < shortest, frequencies, lowered)


def _yarn(periods: Tensor, theta: float, s: RopeScaling) -> Tensor:
    pairs = len(periods)

    def pair_with(rotations: float) -> float:
        """Index, as a real number, of the pair that makes so many rotations over the original context."""
        return (2 * pairs * math.log(s.original_max_seq_len / (rotations * 2 * math.pi))) / (
            2 * math.log(theta)
        )

    first, last = pair_with(s.beta_fast), pair_with(s.beta_slow)
    if s.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    width = last - first or 0.001  # a ramp of width 0 would divide by zero
    kept = 1 - ((torch.arange(pairs, dtype=torch.float32) - first) / width).clamp(0, 1)
    return 1.0 / (s.factor * periods) * (1 - kept) + 1.0 / periods * kept
