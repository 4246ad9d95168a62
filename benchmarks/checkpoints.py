"""The cost of checkpoints and statistics: step times with, without, and waiting for the write.

    python -m benchmarks.checkpoints [--pairs 7] [--depths 4 12] [--work FOLDER]
    python -m benchmarks.checkpoints --losses METRICS.jsonl

For each size three groups of steps alternate: without a checkpoint; with one written in the background, as the
trainer does it; with one that the loop waits for. The groups are long enough for the write to end. `extra` is the
median of a group's time minus that of the group without; the snapshot is the part that the loop always waits for, the
copy in memory. With --losses: how close a run that was logged at every step came to a loss spike by the rule of
model/training/stability.py.
"""

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from model.network.config import Config
from model.network.transformer import Transformer
from model.run_log import RunLog
from model.training.checkpoint import Checkpoints
from model.training.engine import Engine
from model.training.meter import UpdateRatios
from model.training.open_engine import open_engine
from model.training.stability import IN_A_ROW, loss_limit, update_losses
from model.training.train_config import TrainConfig
from model.training.world import init_distributed

SHAPES = {4: (1024, 4), 12: (4096, 1)}  # depth: vocabulary, rows of 256 tokens
STATS_EVERY = TrainConfig().stats_every


def seconds(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def trainer(depth: int) -> tuple[Engine, Callable[[], None], int]:
    """An engine, one step of it, and the model's parameters."""
    vocabulary, rows = SHAPES[depth]
    config = TrainConfig(engine="torch")
    world = init_distributed(config)
    model = Transformer(Config.from_depth(depth, vocabulary, 256))
    engine = open_engine(model, config, world)
    tokens = torch.randint(0, vocabulary, (rows, 257))

    def step() -> None:
        engine.backward(model(tokens[:, :-1], tokens[:, 1:]).sum(), tokens[:, 1:].numel())
        engine.step(1e-4)

    return engine, step, model.num_params()


def measure(depth: int, pairs: int, work: Path) -> list[str]:
    """One row of each table."""
    engine, step, parameters = trainer(depth)
    checkpoints = Checkpoints(work, {}, engine.world, RunLog(enabled=False))
    number = iter(range(1, 1_000_000))

    def save(wait: bool) -> None:
        checkpoints.save(next(number), {}, engine.snapshot)
        if wait:
            checkpoints.settle()

    for _ in range(3):
        step()
    save(wait=True)
    alone = statistics.median(seconds(step) for _ in range(5))
    steps = math.ceil(3 * seconds(lambda: save(wait=True)) / alone) + 1
    plain, background, waiting = [], [], []
    for _ in range(pairs):
        plain.append(seconds(lambda: [step() for _ in range(steps)]))
        background.append(seconds(lambda: [save(wait=False), *(step() for _ in range(steps))]))
        checkpoints.settle()
        waiting.append(seconds(lambda: [save(wait=True), *(step() for _ in range(steps))]))
    extra = [
        statistics.median(a - b for a, b in zip(group, plain, strict=True)) for group in (background, waiting)
    ]
    snapshot = statistics.median(seconds(engine.snapshot) for _ in range(pairs))
    size = sum(f.stat().st_size for f in checkpoints.steps()[-1].iterdir())
    ratios = UpdateRatios(engine.module, engine.world)
    stats = statistics.median(seconds(lambda: ratios.since(ratios.copy())) for _ in range(pairs))
    step_time = statistics.median(plain) / steps
    return [
        f"| {parameters / 1e6:.1f}M | {size / 1e6:.0f} MB | {1e3 * step_time:.0f} ms | {1e3 * snapshot:.1f} ms | "
        f"{1e3 * extra[0]:.0f} ms | {1e3 * extra[1]:.0f} ms |",
        f"| {parameters / 1e6:.1f}M | {1e3 * stats:.2f} ms | {100 * stats / STATS_EVERY / step_time:.3f} % |",
    ]


def closest_to_a_spike(metrics: Path) -> str:
    """How a run's losses compare with the rule for loss spikes."""
    rows = (json.loads(line) for line in metrics.read_text().splitlines())
    by_step = {row["step"]: row["metrics"]["loss"] for row in rows if "loss" in row["metrics"]}
    recent, in_a_row, high, most, share = [], 0, 0, 0, 0.0
    for _, loss in sorted(by_step.items()):
        if math.isfinite(allowed := loss_limit(recent)):
            middle = statistics.median(recent)
            share = max(share, (loss - middle) / (allowed - middle))
        recent, in_a_row = update_losses(loss, recent, in_a_row)
        high, most = high + (in_a_row > 0), max(most, in_a_row)
    return (
        f"{len(by_step):,} steps: {high} with a high loss, {most} in a row at most ({IN_A_ROW} are a spike); "
        f"the highest came {100 * share:.0f} % of the way from the median to the limit."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="turns of the three groups")
    parser.add_argument("--depths", type=int, nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--work", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--losses", type=Path, help="a run's metrics.jsonl with log_every: 1")
    options = parser.parse_args()
    if options.losses:
        print(closest_to_a_spike(options.losses))
        return
    tables = [[], []]
    for depth in options.depths:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            for table, row in zip(tables, measure(depth, options.pairs, Path(folder)), strict=True):
                table.append(row)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {TrainConfig().threads} threads, torch {torch.__version__}"
    )
    print("\n| parameters | checkpoint | step | snapshot | extra, in the background | extra, waited for |")
    print("|---|--:|--:|--:|--:|--:|", *tables[0], sep="\n")
    print(f"\n| parameters | update ratios, once | share of the run, every {STATS_EVERY} steps |")
    print("|---|--:|--:|", *tables[1], sep="\n")


if __name__ == "__main__":
    main()
