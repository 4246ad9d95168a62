"""How long a training step takes here, measured before the training begins."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

from model.network.transformer import Transformer
from model.training.engine import Engine
from model.training.open_engine import open_engine
from model.training.train_config import TrainConfig
from model.training.world import World

DECIDES_NOTHING = "the expected duration, for the log"
MIN_STEPS, MIN_SECONDS = 3, 2.0  # timed at least, after one step that is not


def measure_step(model: Transformer, config: TrainConfig, rows: int, seq_len: int, world: World) -> float:
    """Seconds a step takes here, measured on a copy of the model and arbitrary tokens.

    rows: of a step, over all ranks. Each process measures alone, so communication between ranks is not included.
    """
    alone = dataclasses.replace(config, engine="torch", zero_stage=0)
    engine = open_engine(copy.deepcopy(model), alone, World(device=world.device))
    part = max(1, rows // world.size // config.micro_batches)
    ids = torch.arange(part * seq_len, device=world.device).view(part, seq_len) % model.config.vocab_size
    passes: list[float] = []
    updates: list[float] = []
    until = time.perf_counter() + MIN_SECONDS
    while len(passes) <= MIN_STEPS or time.perf_counter() < until:
        passes.append(_seconds(world.device, lambda: _one_pass(engine, ids)))
        updates.append(_seconds(world.device, lambda: engine.step(config.lr)))
    # The first one loads kernels, and compiles.
    return config.micro_batches * statistics.median(passes[1:]) + statistics.median(updates[1:])


def _one_pass(engine: Engine, ids: torch.Tensor) -> None:
    with engine.autocast():
        loss = engine.model(ids, ids, reduction="sum")
    engine.backward(loss, ids.numel())


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun
