"""AdamW and Muon: the share of the tokens that Muon needs for AdamW's held-out loss, and the time of a step.

    python -m benchmarks.optimizers DATA/base_model/tokens runs.jsonl           # the demo's corpus, about an hour
    python -m benchmarks.optimizers DATA/base_model/tokens runs.jsonl --table   # only what runs.jsonl holds

The demo's model (depth 4), batch (1,024 tokens), rows (256) and schedule (warm-up, constant, linear decay to zero).
A run in mid-schedule has a higher loss than a shorter run that ended there, so runs of different length are compared,
each with its complete schedule. First each optimiser's learning rate is chosen from a grid with seed 0, Muon's at 75 %
of AdamW's steps; then both run with more seeds, and Muon with fewer and fewer steps. Every document is read once an
epoch, including those that the demo repeats. runs.jsonl keeps every finished run, which is not run again.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from model.bits_per_byte import held_out_bpb
from model.data.loader import Loader, Rows, TokenData
from model.network.config import Config
from model.network.transformer import Transformer
from model.training.engine import Engine
from model.training.open_engine import open_engine
from model.training.train_config import TrainConfig, lr_at
from model.training.world import World

DEPTH, SEQ_LEN = 4, 256
ADAMW_LRS = (4e-3, 8e-3, 1.6e-2)
MUON_LRS = ((1.6e-2, 8e-3), (2.4e-2, 1.6e-2), (3.2e-2, 2.4e-2))  # of the rest, of the matrices
MOMENTUM = 0.85
SHARES = (0.75, 0.6, 0.5)  # of AdamW's steps


@dataclasses.dataclass(frozen=True)
class Run:
    optimizer: str
    lr: float
    matrix_lr: float  # 0: the same
    steps: int
    seed: int
    rows: int = 4  # a step
    momentum: float = MOMENTUM

    def config(self) -> TrainConfig:
        return TrainConfig(
            optimizer=self.optimizer,
            lr=self.lr,
            matrix_lr=self.matrix_lr,
            momentum=self.momentum,
            steps=self.steps,
            seed=self.seed,
            warmup=0.05,
            engine="torch",
        )


class Runs:
    """Finished runs in a file, a JSON object a line; missing ones are run on request."""

    def __init__(self, data: TokenData, path: Path):
        self.data, self.path = data, path

    @property
    def bpb(self) -> dict[Run, float]:
        """Held-out bits per byte at the end of each run; other processes may add some."""
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        records = [json.loads(line) for line in lines]
        return {Run(**record["run"]): record["bpb"] for record in records if record["data"] == self.data.hash}

    def __call__(self, run: Run) -> float:
        """The run's bits per byte; it is run if missing."""
        if run not in self.bpb:
            bpb = train(self.data, run)
            record = {"data": self.data.hash, "run": dataclasses.asdict(run), "bpb": bpb}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{run}: {bpb:.4f}", flush=True)
        return self.bpb[run]


def train(data: TokenData, run: Run) -> float:
    """The held-out bits per byte after a run."""
    loader, engine = Loader(data, SEQ_LEN, run.rows, run.seed), open_run(data, run)
    for step in range(run.steps):
        one_step(engine, loader.batch(step), lr_at(engine.config, step))
    return held_out_bpb(engine.model, data, SEQ_LEN, World())


def open_run(data: TokenData, run: Run) -> Engine:
    torch.manual_seed(run.seed)
    vocab_size = 1 + max(int(data.tokens(d).max()) for d in data.documents())
    return open_engine(Transformer(Config.from_depth(DEPTH, vocab_size)), run.config(), World())


def one_step(engine: Engine, rows: Rows, lr: float) -> None:
    inputs, targets = torch.from_numpy(rows.inputs), torch.from_numpy(rows.targets)
    engine.backward(engine.model(inputs, targets).sum(), targets.numel())
    engine.step(lr)


def compare(runs: Runs, steps: int, seeds: int, rows: int) -> None:
    """Run what is missing, then print the table."""
    adamw = min((Run("adamw", lr, 0.0, steps, 0, rows) for lr in ADAMW_LRS), key=runs)
    fewer = round(SHARES[0] * steps)
    muon = min((Run("muon", lr, matrix_lr, fewer, 0, rows) for lr, matrix_lr in MUON_LRS), key=runs)
    for seed in range(seeds):
        runs(dataclasses.replace(adamw, seed=seed))
        for share in SHARES:
            runs(dataclasses.replace(muon, seed=seed, steps=round(share * steps)))
    table(runs, steps, rows)


def table(runs: Runs, steps: int, rows: int) -> None:
    """The finished runs of one seed are compared with that seed's AdamW; learning rates are those of the best."""
    print("| optimiser | lr | matrix_lr | steps | tokens | of AdamW's | bits per byte, by seed | mean |")
    print("|---|---|---|---|---|---|---|---|")
    distinct = {dataclasses.replace(run, seed=0) for run in runs.bpb if run.rows == rows}
    for row in sorted(distinct, key=dataclasses.astuple):
        found = [b for r, b in sorted(runs.bpb.items(), key=lambda x: x[0].seed) if _same(r, row)]
        print(
            f"| {row.optimizer} | {row.lr:g} | {row.matrix_lr or row.lr:g} | {row.steps:,} | "
            f"{row.steps * rows * SEQ_LEN:,} | {row.steps / steps:.0%} | "
            f"{' '.join(f'{b:.4f}' for b in found)} | {statistics.mean(found):.4f} |"
        )


def _same(run: Run, row: Run) -> bool:
    return dataclasses.replace(run, seed=0) == row


def time_steps(data: TokenData, rows: int, steps: int = 60) -> None:
    """Time of a step with either optimiser, alternating in one process."""
    loader = Loader(data, SEQ_LEN, rows)
    engines = {name: open_run(data, Run(name, 8e-3, 0.0, steps, 0)) for name in ("adamw", "muon")}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for step in range(steps):
        for name, engine in engines.items():
            begin = time.perf_counter()
            one_step(engine, loader.batch(step), 1e-3)
            seconds[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(s[5:]) for name, s in seconds.items()}
    ratio = statistics.median(m / a for a, m in zip(*[s[5:] for s in seconds.values()], strict=True))
    print(
        f"A step of {rows * SEQ_LEN:,} tokens: AdamW {median['adamw'] * 1e3:.1f} ms, Muon {median['muon'] * 1e3:.1f} "
        f"ms, {ratio:.3f} times AdamW's (medians of {steps - 5}; {torch.get_num_threads()} threads, "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--steps", type=int, default=684, help="AdamW's; half of the demo's")
    parser.add_argument("--rows", type=int, default=4, help="of a step; the demo's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = TokenData(options.tokens)
    data.weight = np.ones_like(data.weight)
    runs = Runs(data, options.runs)
    if options.table:
        table(runs, options.steps, options.rows)
    elif options.time:
        time_steps(data, options.rows)
    else:
        compare(runs, options.steps, options.seeds, options.rows)


if __name__ == "__main__":
    main()
