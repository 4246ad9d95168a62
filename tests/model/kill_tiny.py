"""One tiny training, killed with -9 at very many moments; every one is a fork, so that torch is loaded once.

    python kill_tiny.py WORK '{"steps": 8, …TrainConfig}' EVERY RANDOM

Kills the run at every EVERY-th thing it does that the operating system or the loop can see (a file opened, renamed
or removed, a batch made, a loss computed), in whatever thread; then RANDOM times after a random while, and again and
again until it gets to its end. After each kill it is restarted and must end with the same curve and weights.
Prints one JSON object: what it was killed at, how often, and what ended otherwise.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from train_tiny import batch_at, tiny_model, weights_hash

from model.data.batch import token_loss
from model.run_log import RunLog
from model.training import deepspeed_engine, stability
from model.training.train_config import TrainConfig
from model.training.trainer import train
from model.training.world import World, init_distributed

BAD_DATA = (7, 8)  # make the loss jump: with rollbacks allowed, the run goes back once
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


class Events:
    """Counts what the run does below its work folder, and ends the process at the one it is told."""

    def __init__(self, work: Path, kill_at: int = -1):
        self.work, self.kill_at, self.seen = str(work), kill_at, []
        sys.addaudithook(self._audited)  # cannot be taken back: in forks only

    def _audited(self, event: str, arguments: tuple) -> None:
        if event in WATCHED and self.work in str(arguments[0]):
            self(f"{event} {Path(str(arguments[0])).name}")

    def __call__(self, what: str) -> None:
        self.seen.append(what)
        if len(self.seen) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def train_here(work: Path, settings: dict, kill_at: int = -1) -> dict:
    """The training in this process: its curve, its weights, what was seen."""
    events = Events(work, kill_at)
    config = TrainConfig(**settings)
    world = init_distributed(config)

    bad = [batch_at(number).inputs for number in BAD_DATA]
    stability.WINDOW, stability.IN_A_ROW = 4, 2  # steps; a run of a test is no longer

    def make_batch(step: int):
        events("batch")
        return batch_at(step)

    def loss(model, batch):
        events("loss")
        loss_sum, count = token_loss(model, batch)
        return loss_sum * (3 if any(torch.equal(batch.inputs, b) for b in bad) else 1), count

    def evaluate(model):
        events("evaluation")
        return {"held_out": float(sum(p.float().norm() for p in model.parameters()))}

    options = {"work": work, "log": RunLog(enabled=False), "world": world, "evaluate": evaluate}
    result = train(tiny_model(), config, make_batch, loss, best="held_out", **options)
    ended = {"curve": result.curve, "weights": weights_hash(result.engine.module)}
    return {"ended": ended, "seen": events.seen}


def fork(work: Path, settings: dict, kill_at: int = -1, after: float | None = None) -> dict | None:
    """The training in a fork; None if it was killed, at its event `kill_at` or `after` so many seconds."""
    told = work.with_suffix(".json")
    told.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            told.write_text(json.dumps(train_here(work, settings, kill_at)))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 1:
        sys.exit(f"The training failed, to be killed at event {kill_at} or after {after} s.")
    return json.loads(told.read_text()) if status == 0 else None


def main(work: Path, settings: dict, every: int, times: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    # Imports for two seconds: once, not in each fork.
    torch.use_deterministic_algorithms(True, warn_only=True)
    if settings.get("engine") == "deepspeed":
        deepspeed_engine.import_deepspeed(World())
    began = time.perf_counter()
    whole = fork(work / "whole", settings)
    seconds, wanted = time.perf_counter() - began, whole["ended"]
    draw, killed, otherwise = random.Random(0), Counter(), []

    def start_again(folder: Path, why: str) -> None:
        killed[why] += 1
        if fork(folder, settings)["ended"] != wanted:
            otherwise.append(why)
        shutil.rmtree(folder)

    for number in range(1, len(whole["seen"]) + 1, every):
        folder = work / f"event-{number}"
        if fork(folder, settings, kill_at=number) is None:
            start_again(folder, whole["seen"][number - 1])
    for number in range(times):
        folder = work / f"time-{number}"
        if fork(folder, settings, after=draw.uniform(0.05, seconds)) is None:
            start_again(folder, "a random moment")
    folder, kills = work / "again", 0
    while (
        kills < times and fork(folder, settings, kill_at=draw.randrange(1, len(whole["seen"]) // 2)) is None
    ):
        kills += 1
    start_again(folder, f"{kills} moments one after another")
    print(json.dumps({"killed": killed, "otherwise": otherwise, "curve": wanted["curve"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
