"""Estimates made before the first step, compared with measurements: operations, memory, time.

    python -m benchmarks.estimates [--threads 2]

Operations: PyTorch's own count of a step's matrix products. Memory: the most that PyTorch's allocator gave out within a
step, by its profiler. Time: the trial's prediction, and a training of so many steps; both share the machine with
other processes.
"""

import argparse
import dataclasses
import time

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.network.config import Config
from model.network.transformer import Transformer
from model.training.engine import Engine
from model.training.estimate import estimate, size
from model.training.open_engine import open_engine
from model.training.train_config import TrainConfig
from model.training.trial import measure_step
from model.training.world import World, keep_freed_memory

# depth, vocabulary, rows a step, tokens a row, optimiser, steps timed
RUNS = (
    (4, 1024, 4, 256, "adamw", 40),
    (4, 1024, 32, 256, "muon", 40),
    (6, 8192, 4, 256, "muon", 40),
    (12, 50304, 1, 1024, "muon", 6),  # 124M
)


def one_step(engine: Engine, ids: torch.Tensor) -> None:
    engine.backward(engine.model(ids, ids, reduction="sum"), ids.numel())
    engine.step(1e-4)


def counted_flops(model: Transformer, ids: torch.Tensor) -> int:
    # The counter knows plain matrix products only: no fused attention, no in-place products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    model.zero_grad()
    return counted.get_total_flops()


def allocated(engine: Engine, ids: torch.Tensor) -> int:
    """The most bytes allocated at once in a step, beyond what was allocated before it."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        one_step(engine, ids)
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as every training on a CPU does
    table = Table("model", "what", "estimated", "measured", "estimated / measured", box=None)
    for depth, vocab_size, rows, seq_len, optimizer, steps in RUNS:
        shape = Config.from_depth(depth, vocab_size, seq_len)
        config = TrainConfig(engine="torch", optimizer=optimizer, steps=steps, threads=options.threads)
        expected = estimate(shape, config, rows, seq_len)
        model, ids = Transformer(shape), torch.randint(0, vocab_size, (rows, seq_len))
        seconds = measure_step(model, config, rows, seq_len, World()) * steps
        flops = counted_flops(model, ids)
        engine = open_engine(model, dataclasses.replace(config), World())
        one_step(engine, ids)  # makes the moments, loads kernels
        held = expected.memory.weights + expected.memory.optimizer
        step_bytes = allocated(engine, ids)
        begun = time.perf_counter()
        for _ in range(steps):
            one_step(engine, ids)
        took = time.perf_counter() - begun
        name = f"depth {depth}, vocabulary {vocab_size:,}, {rows} × {seq_len}, {optimizer}"
        per_step = expected.flops / expected.steps
        for what, ours, theirs, form in (
            ("FLOPs a step", per_step, flops, "{:.3g}".format),
            ("memory within a step", expected.memory.total - held, step_bytes, size),
            (f"seconds of {steps} steps", seconds, took, "{:.1f}".format),
        ):
            table.add_row(name, what, form(ours), form(theirs), f"{ours / theirs:.2f}")
            name = ""
    Console().print(table)
    print(f"{options.threads} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
