"""The training loop: what it computes, what it refuses, and what a kill at any moment leaves."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from train_tiny import ROWS, batch_at, tiny_model, weights_hash

from core.errors import ConfigError, RunError
from model.data.batch import Batch, token_loss
from model.run_log import RunLog
from model.training import stability
from model.training.meter import Display
from model.training.train_config import TrainConfig, lr_at
from model.training.trainer import train
from model.training.world import World

SCRIPT = Path(__file__).with_name("train_tiny.py")
BASE = {"steps": 6, "lr": 1e-2, "threads": 1, "engine": "torch", "checkpoint_every": 2}


OPTIONS = {"identity", "evaluate", "best", "log", "display"}


class RecordingLog(RunLog):
    """A log that records messages and metrics."""

    def __init__(self):
        super().__init__(enabled=False)
        self.messages, self.logged = [], []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def log(self, step: int, **metrics: float) -> None:
        self.logged.append((step, metrics))


def run(work, make_batch=batch_at, loss=token_loss, **settings):
    """Train the tiny model in this process."""
    options = {name: settings.pop(name) for name in OPTIONS & settings.keys()}
    options = {"log": RunLog(enabled=False)} | options
    config = TrainConfig(**(BASE | settings))
    return train(tiny_model(), config, make_batch, loss, work=work, world=World(), **options)


def start(root: Path, work: Path, wait_at: int = -1, **settings) -> subprocess.Popen:
    """The same training in a process of its own, which waits before step `wait_at` to be killed."""
    command = [sys.executable, str(SCRIPT), str(work), json.dumps(BASE | settings), str(wait_at)]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    work.mkdir(exist_ok=True)
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def interrupt(process: subprocess.Popen, work: Path, number: signal.Signals) -> str:
    """Send the signal once the process waits, and let it continue; returns what it wrote to stderr."""
    while not (work / "waiting").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    (work / "waiting").unlink()
    return process.communicate(timeout=120)[1]


def kill_everywhere(root: Path, work: Path, every: int, times: int, **settings) -> dict:
    """The result of kill_tiny.py: a run killed at every `every`-th event, and `times` times at random."""
    script, arguments = SCRIPT.with_name("kill_tiny.py"), json.dumps(BASE | settings)
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(work), arguments, str(every), str(times)]
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SPIKING = {"steps": 12, "checkpoint_every": 3, "eval_every": 4, "rollbacks": 1}


def test_a_run_killed_anywhere_ends_with_the_same_bits(root, tmp_path):
    """Between two steps, in one, while a checkpoint is written, renamed or removed, before and after a rollback."""
    found = kill_everywhere(root, tmp_path, every=9, times=2, engine="torch", **SPIKING)
    assert sum(found["killed"].values()) >= 12 and found["differing"] == []
    assert [row["step"] for row in found["curve"] if "rollbacks" in row] == [7, 8, 9, 10, 11, 12]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"engine": "torch"}, {"zero_stage": 0}, {"zero_stage": 2}])
def test_a_run_killed_at_every_single_event_ends_with_the_same_bits(root, tmp_path, settings):
    found = kill_everywhere(root, tmp_path, every=1, times=20, **SPIKING | {"engine": "deepspeed"} | settings)
    assert sum(found["killed"].values()) >= 120 and found["differing"] == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_killed_training_resumes_to_the_same_bits_in_a_new_process(root, tmp_path, engine):
    uninterrupted, _ = start(root, tmp_path / "whole", engine=engine).communicate(timeout=240)
    killed = start(root, tmp_path / "killed", wait_at=5, engine=engine)
    interrupt(killed, tmp_path / "killed", signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    resumed, _ = start(root, tmp_path / "killed", engine=engine).communicate(timeout=240)
    assert json.loads(resumed.splitlines()[-1]) == json.loads(uninterrupted.splitlines()[-1])


def test_a_checkpoint_of_two_ranks_is_resumed_by_one(root, tmp_path):
    whole = run(tmp_path / "whole")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = json.dumps(BASE | {"micro_batches": 2})
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SCRIPT), str(tmp_path / "two"), settings]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=240)
    folders = sorted((tmp_path / "two" / "checkpoints").iterdir())
    assert {"rank-00000.safetensors", "rank-00001.safetensors"} <= {f.name for f in folders[0].iterdir()}
    shutil.rmtree(folders[-1])
    log = RecordingLog()
    for row, other in zip(run(tmp_path / "two", log=log).curve, whole.curve, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=2e-6)
    assert "ranks was 2, is 1" in " ".join(log.messages) and "last digits will differ" in " ".join(
        log.messages
    )


def test_sigterm_saves_the_current_step_and_reports_it(root, tmp_path):
    process = start(root, tmp_path, wait_at=3, checkpoint_every=100)
    stderr = interrupt(process, tmp_path, signal.SIGTERM)
    assert "Stopped after step" in stderr
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_micro_batches_with_unequal_counts_equal_one_big_batch(tmp_path):
    whole, parts = run(tmp_path / "1"), run(tmp_path / "4", micro_batches=4)
    for row, other in zip(whole.curve, parts.curve, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=2e-6)


def test_the_loss_is_the_mean_over_supervised_tokens_only(tmp_path):
    model, batch = tiny_model(), batch_at(0)
    logits = model(batch.inputs)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    assert run(tmp_path, steps=1).curve[0]["loss"] == pytest.approx(expected.item(), abs=1e-6)


def test_a_step_without_supervised_tokens_changes_nothing_and_is_counted(tmp_path):
    def empty(step: int) -> Batch:
        return Batch(batch_at(step).inputs, torch.full((ROWS, 16), -100))

    result = run(tmp_path, empty, steps=2)
    assert result.state.empty_steps == 2 and result.state.tokens == 0
    assert weights_hash(result.engine.module) == weights_hash(tiny_model())


def test_a_micro_batch_without_supervised_tokens_gives_no_nan(tmp_path):
    def mostly_empty(step: int) -> Batch:
        batch = batch_at(step)
        batch.targets[1:] = -100
        batch.targets[0] = batch.inputs[0]
        return batch

    result = run(tmp_path, mostly_empty, micro_batches=ROWS)
    assert all(math.isfinite(row["loss"]) for row in result.curve) and result.state.not_finite_steps == 0


@pytest.mark.parametrize("stage", [None, 0, 1, 3])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(tmp_path, stage):
    def poisoned(model, batch):
        loss, count = token_loss(model, batch)
        return loss * (math.nan if float(batch.inputs.sum()) == marked else 1.0), count

    marked = float(batch_at(2).inputs.sum())
    engine = {"engine": "torch"} if stage is None else {"engine": "deepspeed", "zero_stage": stage}
    if stage is not None:
        from model.training.world import init_distributed

        init_distributed(TrainConfig(**(BASE | engine)))
    result = run(tmp_path, loss=poisoned, **engine)
    assert result.state.not_finite_steps == 1 and result.state.step == 6
    assert math.isfinite(result.state.loss)
    with result.engine.gathered():
        assert all(torch.isfinite(p).all() for p in result.engine.module.parameters())


def test_a_run_that_diverged_stops_with_an_error(tmp_path):
    def broken(model, batch):
        loss, count = token_loss(model, batch)
        return loss * math.nan, count

    with pytest.raises(RunError, match=r"not finite in 10 steps in a row.*Lower lr"):
        run(tmp_path, loss=broken, steps=20)


def poisoned_data(numbers: set[int], factor: float):
    """(make_batch, loss, read): data of these numbers multiply the loss; read: the numbers, as they were read."""
    read = []

    def make_batch(number: int) -> Batch:
        read.append(number)
        return batch_at(number)

    def loss(model, batch):
        loss_sum, count = token_loss(model, batch)
        return loss_sum * (factor if read[-1] in numbers else 1.0), count

    return make_batch, loss, read


@pytest.fixture
def short_window(monkeypatch):
    monkeypatch.setattr(stability, "WINDOW", 6)
    monkeypatch.setattr(stability, "IN_A_ROW", 3)


def test_a_spike_rolls_the_run_back_and_its_data_are_skipped(tmp_path, short_window):
    make_batch, loss, read = poisoned_data({10, 11, 12}, 3.0)
    log = RecordingLog()
    result = run(tmp_path / "spike", make_batch, loss, steps=16, checkpoint_every=4, rollbacks=2, log=log)
    assert read == [*range(21)] and result.state.skipped == [[8, 5]]
    assert "Step 13: the loss was high in 3 steps in a row" in log.messages[0]
    assert (
        "back to step 8, without the data of the 5 steps since then (rollback 1 of at most 2)"
        in log.messages[0]
    )
    assert result.curve[-1]["rollbacks"] == 1 and result.curve[-1]["skipped_steps"] == 5
    # The same weights as of a run that never had those data.
    clean = run(tmp_path / "clean", lambda step: batch_at(step if step < 8 else step + 5), steps=16)
    assert weights_hash(clean.engine.module) == weights_hash(result.engine.module)


def test_a_run_that_keeps_spiking_stops_after_its_rollbacks(tmp_path, short_window):
    make_batch, loss, read = poisoned_data(set(range(10, 100)), 3.0)
    with pytest.raises(RunError, match=r"high in 3 steps in a row.*2 rollbacks have not helped.*diverged"):
        run(tmp_path, make_batch, loss, steps=60, checkpoint_every=4, rollbacks=2)
    assert read == [*range(19)]  # 13 steps, back to 8 and three more, twice


def test_gradients_that_stay_not_finite_roll_the_run_back_too(tmp_path):
    make_batch, loss, read = poisoned_data(set(range(5, 15)), math.nan)
    result = run(tmp_path, make_batch, loss, steps=18, checkpoint_every=2, rollbacks=1)
    assert result.state.skipped == [[4, 11]] and read == [*range(29)]
    assert result.state.not_finite_steps == 0  # of the steps that count


def test_without_an_earlier_checkpoint_a_spike_is_reported_and_training_continues(tmp_path, short_window):
    make_batch, loss, _ = poisoned_data({10, 11, 12}, 3.0)
    log = RecordingLog()
    result = run(tmp_path, make_batch, loss, steps=16, checkpoint_every=100, rollbacks=2, log=log)
    assert result.state.step == 16 and result.state.skipped == []
    assert [text for text in log.messages if "no checkpoint before it" in text]


def test_a_loss_that_ignores_the_mask_is_detected(tmp_path):
    def unmasked(model, batch):
        return model(batch.inputs, batch.inputs).sum(), batch.inputs.numel()

    with pytest.raises(ValueError, match="lost the mask"):
        run(tmp_path, loss=unmasked)


def test_a_checkpoint_of_other_data_is_refused_by_name(tmp_path):
    run(tmp_path, identity={"data": "aaa"}, steps=6)
    with pytest.raises(RunError, match="data was aaa, is bbb"):
        run(tmp_path, identity={"data": "bbb"}, steps=6)
    with pytest.raises(RunError, match=r"config\.lr was 0\.01, is 0\.02"):
        run(tmp_path, identity={"data": "aaa"}, lr=2e-2)


def test_a_truncated_checkpoint_is_rejected_and_the_previous_one_used(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut")
    folders = sorted((tmp_path / "cut" / "checkpoints").iterdir())
    assert [f.name for f in folders] == ["step-00000004", "step-00000006"]
    state = folders[-1] / "rank-00000.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    resumed = run(tmp_path / "cut")
    assert resumed.curve == whole.curve
    assert weights_hash(resumed.engine.module) == weights_hash(whole.engine.module)


def test_with_every_checkpoint_damaged_training_does_not_silently_start_over(tmp_path):
    run(tmp_path)
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "curve.jsonl").unlink()
    with pytest.raises(RunError, match="none of the 2 checkpoints is whole"):
        run(tmp_path)


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint_intact(tmp_path):
    whole = run(tmp_path / "whole", steps=6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(step: int) -> Batch:
        if step == 3:  # as a full disk does: writes fail from here on
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        return batch_at(step)

    try:
        with pytest.raises(RunError, match=r"step 4 could not be written.*step-00000002 is whole.*disk"):
            run(tmp_path / "full", fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "full" / "checkpoints").iterdir()] == ["step-00000002"]
    assert weights_hash(run(tmp_path / "full").engine.module) == weights_hash(whole.engine.module)


def test_batches_may_depend_on_the_weights_and_still_resume(tmp_path):
    """Reinforcement learning samples with the current model, from torch's generator."""

    def train_on_own_samples(work):
        model = tiny_model()

        def rollout(step: int) -> Batch:
            with torch.no_grad():
                logits = model(batch_at(step).inputs)[:, -1]
            drawn = torch.multinomial(logits.softmax(-1), 17, replacement=True)
            return Batch(drawn[:, :-1], drawn[:, 1:], metrics={"reward": float(drawn.float().mean())})

        options = {"work": work, "log": RunLog(enabled=False), "world": World()}
        return train(model, TrainConfig(**BASE), rollout, **options)

    whole = train_on_own_samples(tmp_path / "whole")
    train_on_own_samples(tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000006")
    assert train_on_own_samples(tmp_path / "cut").curve == whole.curve
    assert "reward" in whole.curve[0]


def test_evaluation_is_in_the_curve_when_due_and_at_the_end(tmp_path):
    result = run(tmp_path, evaluate=lambda model: {"held_out": 1.5}, steps=5, eval_every=2)
    assert [row["step"] for row in result.curve if "held_out" in row] == [2, 4, 5]


def test_the_best_checkpoint_is_that_of_the_lowest_evaluation(tmp_path):
    numbers = iter([2.0, 1.0, 1.5, 1.25])

    def evaluate(model) -> dict[str, float]:
        return {"held_out": next(numbers)}

    run(tmp_path, steps=8, eval_every=2, checkpoint_every=100, best="held_out", evaluate=evaluate)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]


def test_the_display_does_not_change_the_result(tmp_path):
    plain, log = run(tmp_path / "plain", eval_every=2, evaluate=lambda _: {}), RecordingLog()
    log.enabled = True
    display = Display(
        flops_per_token=1e3, bytes_per_token=4.0, sample=lambda m: [{"prompt": str(m.training)}]
    )
    shown = run(
        tmp_path / "shown", stats_every=3, log=log, display=display, eval_every=2, evaluate=lambda _: {}
    )
    assert shown.curve == plain.curve
    assert weights_hash(shown.engine.module) == weights_hash(plain.engine.module)
    metrics = dict(log.logged)[6]
    assert metrics["bpb"] == pytest.approx(metrics["loss"] / math.log(2) / 4)
    assert {"tokens_per_second", "mfu", "memory_gb", "eta_seconds", "lr", "grad_norm"} <= metrics.keys()
    assert [step for step, numbers in log.logged if "update_ratio/layer_00" in numbers] == [3, 6]
    written = (tmp_path / "shown" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in written] == [2, 4, 6]


def test_the_schedule_warms_up_stays_constant_and_decays():
    config = TrainConfig(steps=100, lr=1.0, warmup=0.1, decay=0.2, schedule="wsd")
    rates = [lr_at(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert set(rates[9:80]) == {1.0}
    assert rates[89] == pytest.approx(0.5) and rates[-1] == 0.0
    cosine = TrainConfig(steps=100, lr=1.0, warmup=0.0, schedule="cosine", final_lr=0.1)
    assert lr_at(cosine, 99) == pytest.approx(0.1)
    assert lr_at(cosine, 50) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 50 / 99)))


def test_an_invalid_setting_is_refused():
    with pytest.raises(ConfigError, match="zero_stage: 4 is not one of"):
        TrainConfig(zero_stage=4)
