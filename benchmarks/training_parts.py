"""The cost of parts of a training step on a CPU, as implemented here and as plain PyTorch.

    python -m benchmarks.training_parts [--threads 2]

Forward and backward pass, CPU milliseconds of all threads, the minimum of several rounds in which both alternate.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network import loss
from model.network.norm import RMSNorm
from model.network.rope import rope_tables, rotate

Part = tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]  # plain, ours, leaves


def cross_entropy(tokens: int, width: int, vocab_size: int) -> Part:
    targets = torch.randint(vocab_size, (tokens,))

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        return loss.cross_entropy(hidden, weight, targets, reduction="sum")

    return plain, ours, (torch.randn(tokens, width), torch.randn(vocab_size, width) * width**-0.5)


def rms_norm(*shape: int) -> Part:
    norm = RMSNorm(shape[-1], 1e-6)

    def plain(x: Tensor) -> Tensor:
        return F.rms_norm(x, shape[-1:], norm.weight, 1e-6)

    return plain, norm, (torch.randn(shape),)


def rotary(*shape: int) -> Part:
    cos, sin = (table.unsqueeze(-2) for table in rope_tables(shape[1], shape[-1], 1e4))

    def plain(x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-right, left), dim=-1) * sin

    return plain, lambda x: rotate(x, cos, sin), (torch.randn(shape),)


PARTS: dict[str, Callable[[], Part]] = {
    "loss, 1,024 tokens, 256 wide, vocabulary 50,304": lambda: cross_entropy(1024, 256, 50304),
    "loss, 1,024 tokens, 768 wide, vocabulary 50,304": lambda: cross_entropy(1024, 768, 50304),
    "loss, 1,024 tokens, 128 wide, vocabulary 1,024": lambda: cross_entropy(1024, 128, 1024),
    "RMSNorm, (4, 256, 128)": lambda: rms_norm(4, 256, 128),
    "RMSNorm, (4, 256, 512)": lambda: rms_norm(4, 256, 512),
    "RMSNorm of queries, (4, 256, 8, 64)": lambda: rms_norm(4, 256, 8, 64),
    "rotary positions, (4, 256, 4, 32)": lambda: rotary(4, 256, 4, 32),
    "rotary positions, (4, 256, 8, 64)": lambda: rotary(4, 256, 8, 64),
}


def cpu_ms(
    function: Callable[..., Tensor], leaves: tuple[Tensor, ...], upstream: Tensor, times: int
) -> float:
    began = time.process_time()
    for _ in range(times):
        torch.autograd.grad(function(*leaves), leaves, upstream)
    return 1e3 * (time.process_time() - began) / times


def measure(part: Part, rounds: int = 7) -> tuple[float, float]:
    """(plain, ours)."""
    plain, ours, leaves = part
    for leaf in leaves:
        leaf.requires_grad_()
    upstream = torch.ones_like(plain(*leaves))
    times = max(1, int(50 / cpu_ms(plain, leaves, upstream, 1)))
    found = [
        [cpu_ms(function, leaves, upstream, times) for function in (plain, ours)]
        for _ in itertools.repeat(None, rounds)
    ]
    return min(a for a, _ in found), min(b for _, b in found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, torch {torch.__version__}\n")
    print("| CPU ms, forward and backward | plain | here | times as fast |\n|---|--:|--:|--:|")
    for name, part in PARTS.items():
        plain, ours = measure(part())
        print(f"| {name} | {plain:,.2f} | {ours:,.2f} | {plain / ours:.1f} |", flush=True)
    tokens, width, vocab_size = 1024, 256, 50304
    for chunk in (64, 128, 256, 512, 1024):
        loss.LOGITS_AT_ONCE["cpu"] = chunk * vocab_size
        _, ours = measure(cross_entropy(tokens, width, vocab_size), rounds=3)
        print(f"| the first loss, {chunk} tokens at once | | {ours:,.0f} | |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
