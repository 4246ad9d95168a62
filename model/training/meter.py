"""Speed and memory of a training: numbers for the log, none of which enters a result.

Notable:
- tokens a second are counted over the steps alone: the time of evaluation and samples is left out (`paused`);
- MFU, model FLOPs utilisation (arXiv 2204.02311, appendix B), is relative to the maker's dense bfloat16 figure on a
  GPU. CPUs have no such figure, so a matrix product of the dtype that computes is timed once, at the start, on the
  threads of the run;
- an update ratio is rms(update) / rms(weight) over the matrices of a layer, in one step: about 1e-3 in a healthy
  run; far below, a layer hardly learns, far above, it is unstable (Karpathy's "makemore", part 3).
"""

from __future__ import annotations

import functools
import math
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.training.gpus import PEAK_FLOPS
from model.training.world import World

DECIDES_NOTHING = "speed and memory, for the log"
BAR_FORMAT = "{desc} {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"  # fits 100 columns
SAMPLED = 65_536  # numbers of a matrix that an update ratio looks at: of 2,048 × 2,048, one in 64


@dataclass(frozen=True)
class Display:
    """What a script shows in addition to the loss. No number of the result depends on it.

    sample(model): continuations to read, {"prompt": …, "continuation": …}, on every rank, after each evaluation.
    """

    flops_per_token: float = 0.0  # forward and backward; 0: no MFU
    bytes_per_token: float = 0.0  # of the text, as UTF-8; 0: no bits per byte
    sample: Callable[[nn.Module], list[dict[str, str]]] | None = None


class Meter:
    """The clock of a run. The loop reports the steps done; `read` gives the speed since the last reading."""

    def __init__(self, world: World, display: Display, source: Any, peak: float = 0.0):
        """source: where batches come from; its `waited`, if it has that, is the seconds spent waiting for data.
        peak: FLOP/s of one process's device, 0 if unknown."""
        self.world, self.display, self.source, self.peak = world, display, source, peak
        self.done, self.began = 0, time.perf_counter()
        self._start()

    def count(self, tokens: float) -> None:
        """Record one step over so many tokens of all ranks."""
        self.tokens += tokens
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count as training."""
        before = time.perf_counter()
        yield
        self.clock += time.perf_counter() - before

    def read(self, loss: float, left: int) -> dict[str, float]:
        """Numbers since the last reading. loss: nats a token; left: steps still to be done."""
        now = time.perf_counter()
        seconds = max(now - self.clock, 1e-9)
        speed = self.tokens / seconds
        self.done += self.steps
        numbers = {"tokens_per_second": speed, "step_seconds": seconds / max(1, self.steps)}
        numbers["eta_seconds"] = (now - self.began) / max(1, self.done) * left
        if self.display.flops_per_token and self.peak:
            numbers["mfu"] = speed * self.display.flops_per_token / (self.peak * self.world.size)
        if (waited := self._waited()) is not None:
            numbers["data_wait"] = (waited - self.waited) / seconds
        if self.display.bytes_per_token and math.isfinite(loss):
            numbers["bpb"] = loss / math.log(2) / self.display.bytes_per_token
        numbers["memory_gb"] = peak_memory(self.world.device) / 1e9
        self._start()
        return numbers

    def _start(self) -> None:
        self.clock, self.tokens, self.steps = time.perf_counter(), 0.0, 0
        self.waited = self._waited() or 0.0

    def _waited(self) -> float | None:
        return getattr(self.source, "waited", None)


def status_line(loss: float, numbers: dict[str, float]) -> str:
    """What the progress bar shows after the time: at most some 60 characters."""
    parts = [f"loss {loss:.3f}"]
    if "bpb" in numbers:
        parts.append(f"bpb {numbers['bpb']:.3f}")
    speed = numbers["tokens_per_second"]
    unit, short = (1e6, "M") if speed >= 1e6 else (1e3, "k") if speed >= 1e3 else (1, "")
    parts.append(f"{speed / unit:.3g}{short} tok/s")
    if "mfu" in numbers:
        parts.append(f"MFU {100 * numbers['mfu']:.0f}%")
    parts.append(f"{numbers['memory_gb']:.3g}GB")
    if numbers.get("rollbacks"):
        parts.append(f"{numbers['rollbacks']:.0f} back")
    return " ".join(parts)


def peak_memory(device: torch.device) -> float:
    """The most bytes that this process has held: allocated on its GPU, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_flops(device: torch.device, half: bool) -> tuple[float, str]:
    """The peak FLOP/s of the device, 0 if unknown, and a sentence about the source of the number.

    half: a CPU's in bfloat16, not in float32.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = next((peak for part, peak in PEAK_FLOPS.items() if part in name), 0.0)
        if not peak:
            return 0.0, f"{name}: its peak is not in model/training/gpus.py, so there is no MFU."
        return peak, f"MFU is of {peak / 1e12:,.0f} TFLOP/s, {name}'s dense bfloat16."
    peak = measured_flops(torch.bfloat16 if half else torch.float32)
    kind, threads = "bf16" if half else "fp32", torch.get_num_threads()
    return (
        peak,
        f"MFU is of {peak / 1e9:,.0f} GFLOP/s, a {kind} matrix product here on {threads} threads.",
    )


def measured_flops(dtype: torch.dtype, size: int = 512, seconds: float = 0.3) -> float:
    """FLOP/s of the fastest of many products of two square matrices on this CPU. Each is short enough that some run
    undisturbed between time slices of other processes."""
    a = torch.ones(size, size, dtype=dtype)
    best, until = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < until or best == math.inf:
        before = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best


class UpdateRatios:
    """How far one optimiser step moves each layer, relative to the size of its weights.

    Large matrices are sampled at even distances. Under ZeRO 3 each rank reads its own part of a weight, and the
    sums over all ranks make the ratio; otherwise every rank sees the same whole weights.
    """

    def __init__(self, module: nn.Module, world: World):
        self.world = world
        self.matrices: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, weight in module.named_parameters():
            if len(getattr(weight, "ds_shape", weight.shape)) >= 2:
                self.matrices[_group(name)].append(weight)

    @torch.no_grad()
    def copy(self) -> dict[str, list[Tensor]]:
        """A copy of the (sampled) weights, before a step."""
        return {name: [_sample(w).clone() for w in weights] for name, weights in self.matrices.items()}

    @torch.no_grad()
    def since(self, before: dict[str, list[Tensor]]) -> dict[str, float]:
        """update_ratio/layer_03 and so on, of the weights now to those that `copy` gave. Every rank calls it."""
        squares = []
        for name, weights in self.matrices.items():
            pairs = [(_sample(w).float(), old.float()) for w, old in zip(weights, before[name], strict=True)]
            squares.append(functools.reduce(torch.add, ((new - old).square().sum() for new, old in pairs)))
            squares.append(functools.reduce(torch.add, (old.square().sum() for _, old in pairs)))
        sums = self.world.sum(*torch.stack(squares).tolist())
        ratios = zip(self.matrices, sums[::2], sums[1::2], strict=True)
        return {f"update_ratio/{name}": math.sqrt(moved / size) for name, moved, size in ratios if size}


def _group(name: str) -> str:
    """layers.3.attention.q_proj.weight -> layer_03; lm_head.weight -> lm_head."""
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return f"layer_{int(layer[1]):02d}" if layer else name.removesuffix(".weight")


def _sample(weight: nn.Parameter) -> Tensor:
    """At most SAMPLED numbers of what this rank holds of a weight, flat."""
    flat = getattr(weight, "ds_tensor", weight).detach().view(-1)
    return flat[:: -(-len(flat) // SAMPLED) or 1]
