"""One tiny training, killed with -9 at many moments; each run is a fork, so that torch is loaded once.

    python kill_tiny.py WORK '{"steps": 8, …TrainConfig}' EVERY RANDOM

Kills the run at every EVERY-th event that the operating system or the loop can observe (a file opened, renamed or
removed, a batch made, a loss computed), in any thread; then RANDOM times after a random delay, and repeatedly until it
reaches its end. After each kill it is restarted and must end with the same curve and weights.
Prints one JSON object: at which events it was killed, how often, and which of these runs ended differently.
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

BAD_DATA = (7, 8)  # make the loss jump: with rollbacks allowed, the run rolls back once
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


class Events:
    """Counts the events of the run below its work folder, and kills the process at a given one."""

    def __init__(self, work: Path, kill_at: int = -1):
        self.work, self.kill_at, self.events = str(work), kill_at, []
        sys.addaudithook(self._audited)  # cannot be removed: in forks only

    def _audited(self, event: str, arguments: tuple) -> None:
        if event in WATCHED and self.work in str(arguments[0]):
            self(f"{event} {Path(str(arguments[0])).name}")

    def __call__(self, what: str) -> None:
        self.events.append(what)
        if len(self.events) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def train_here(work: Path, settings: dict, kill_at: int = -1) -> dict:
    """The training in this process: its curve, its weights, its events."""
    events = Events(work, kill_at)
    config = TrainConfig(**settings)
    world = init_distributed(config)

    bad = [batch_at(number).inputs for number in BAD_DATA]
    stability.WINDOW, stability.IN_A_ROW = 4, 2  # steps; a test run has few

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
    return {"ended": ended, "events": events.events}


def fork(work: Path, settings: dict, kill_at: int = -1, after: float | None = None) -> dict | None:
    """The training in a fork; None if it was killed, at its event `kill_at` or `after` so many seconds."""
    report = work.with_suffix(".json")
    report.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            report.write_text(json.dumps(train_here(work, settings, kill_at)))
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
    return json.loads(report.read_text()) if status == 0 else None


def main(work: Path, settings: dict, every: int, times: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    # Two seconds of imports: once, not in each fork.
    torch.use_deterministic_algorithms(True, warn_only=True)
    if settings.get("engine") == "deepspeed":
        deepspeed_engine.import_deepspeed(World())
    began = time.perf_counter()
    whole = fork(work / "whole", settings)
    seconds, expected = time.perf_counter() - began, whole["ended"]
    draw, killed, differing = random.Random(0), Counter(), []

    def restart(folder: Path, why: str) -> None:
        killed[why] += 1
        if fork(folder, settings)["ended"] != expected:
            differing.append(why)
        shutil.rmtree(folder)

    for number in range(1, len(whole["events"]) + 1, every):
        folder = work / f"event-{number}"
        if fork(folder, settings, kill_at=number) is None:
            restart(folder, whole["events"][number - 1])
    for number in range(times):
        folder = work / f"time-{number}"
        if fork(folder, settings, after=draw.uniform(0.05, seconds)) is None:
            restart(folder, "a random moment")
    folder, kills = work / "again", 0
    while (
        kills < times and fork(folder, settings, kill_at=draw.randrange(1, len(whole["events"]) // 2)) is None
    ):
        kills += 1
    restart(folder, f"{kills} moments one after another")
    print(json.dumps({"killed": killed, "differing": differing, "curve": expected["curve"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
