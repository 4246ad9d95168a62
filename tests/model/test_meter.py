"""Measurements of a run: against a stopwatch, a sum done by hand, and the width of a terminal."""

import io
import math
import time

import pytest
import torch
from train_tiny import batch_at, tiny_model

from model.training.meter import (
    BAR_FORMAT,
    Display,
    Meter,
    UpdateRatios,
    measured_flops,
    peak_memory,
    status_line,
)
from model.training.world import World


class Source:
    waited = 1.0

    def __call__(self, step: int):
        self.waited += 0.05


def test_speed_is_of_the_steps_without_pauses():
    meter = Meter(World(), Display(flops_per_token=2e6, bytes_per_token=4.0), source := Source(), peak=1e12)
    for step in range(2):
        source(step)
        time.sleep(0.1)
        meter.count(1000)
    with meter.paused():
        time.sleep(0.5)
    numbers = meter.read(loss=4 * math.log(2), left=10)
    speed = numbers["tokens_per_second"]
    assert 2000 / 0.7 < speed <= 2000 / 0.2 and numbers["bpb"] == pytest.approx(1.0)
    assert numbers["mfu"] == pytest.approx(speed * 2e6 / 1e12)
    assert numbers["data_wait"] == pytest.approx(0.1 * speed / 2000)
    assert numbers["step_seconds"] == pytest.approx(1000 / speed)
    assert numbers["eta_seconds"] > 10 * 0.3  # pauses will happen again
    assert meter.read(1.0, 0)["tokens_per_second"] == 0


def test_without_their_inputs_there_is_no_mfu_and_no_bpb():
    numbers = Meter(World(), Display(), lambda step: None).read(1.0, 1)
    assert not {"mfu", "bpb", "data_wait"} & numbers.keys()


def test_the_progress_line_of_a_long_run_fits_a_hundred_columns():
    from tqdm import tqdm

    numbers = {
        "bpb": 1.0123,
        "tokens_per_second": 1_234_567,
        "mfu": 0.512,
        "memory_gb": 71.25,
        "rollbacks": 2,
    }
    screen = io.StringIO()
    with tqdm(
        total=136_700, initial=50_000, desc="base model", bar_format=BAR_FORMAT, file=screen, ncols=1000
    ) as bar:
        bar.start_t -= 100_000  # a day and more
        bar.n += 50_000
        bar.set_postfix_str(status_line(2.3456, numbers))
        shown = screen.getvalue().rpartition("\r")[2].rstrip()
    assert shown.endswith("loss 2.346 bpb 1.012 1.23M tok/s MFU 51% 71.2GB 2 back") and "<" in shown
    assert len(shown) <= 100, shown


def test_a_cpus_peak_is_that_of_a_product_and_memory_that_of_the_process():
    psutil = pytest.importorskip("psutil")
    assert 1e8 < measured_flops(torch.float32, size=256, seconds=0.05) < 1e14
    assert peak_memory(torch.device("cpu")) >= psutil.Process().memory_info().rss * 0.9


def test_update_ratios_are_how_far_a_step_moves_each_layer():
    model = tiny_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(2.0)
    ratios = UpdateRatios(model, World())
    before = ratios.copy()
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight.add_(0.02)
    found = ratios.since(before)
    block = [p for p in model.layers[0].parameters() if p.ndim == 2]
    share = model.layers[0].mlp.up_proj.weight.numel() / sum(p.numel() for p in block)
    assert found["update_ratio/layer_00"] == pytest.approx(0.01 * share**0.5, rel=1e-4)
    assert found["update_ratio/embed_tokens"] == 0


@pytest.mark.parametrize("stage", [1, 3])
def test_zero_shows_the_update_ratios_of_plain_torch(stage):
    from model.training.open_engine import open_engine
    from model.training.train_config import TrainConfig
    from model.training.world import destroy_distributed, init_distributed

    def ratios(**settings) -> dict[str, float]:
        config = TrainConfig(lr=1e-2, threads=1, **settings)
        world = init_distributed(config)
        engine = open_engine(tiny_model(), config, world)
        found = UpdateRatios(engine.module, world)
        before, batch = found.copy(), batch_at(0)
        engine.backward(engine.model(batch.inputs, batch.targets).sum(), batch.count)
        engine.step(1e-2)
        moved = found.since(before)
        destroy_distributed()
        return moved

    plain, sharded = ratios(engine="torch"), ratios(engine="deepspeed", zero_stage=stage)
    assert plain.keys() == sharded.keys() and all(value > 0 for value in plain.values())
    assert all(sharded[name] == pytest.approx(plain[name], rel=1e-3) for name in plain)
