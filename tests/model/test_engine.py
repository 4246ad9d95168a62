"""DeepSpeed's stages, one process or two, and plain torch take the same steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("train_tiny.py")
SETTINGS = {"steps": 5, "lr": 1e-2, "threads": 1, "checkpoint_every": 2, "micro_batches": 2}


def run(root: Path, work: Path, ranks: int = 1, **settings) -> list[dict]:
    """The curve of a tiny training in processes of their own."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launcher, str(SCRIPT), str(work), json.dumps(SETTINGS | settings)]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["curve"]


def assert_same_losses(curve: list[dict], wanted: list[dict]) -> None:
    for row, other in zip(curve, wanted, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=2e-6)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-6)


@pytest.fixture(scope="module")
def plain_torch(root, tmp_path_factory) -> list[dict]:
    """The simple path that all others must agree with: one process, one batch, no DeepSpeed."""
    return run(root, tmp_path_factory.mktemp("torch"), engine="torch", micro_batches=1)


def test_zero_3_in_one_process_takes_the_steps_of_plain_torch(root, tmp_path, plain_torch):
    assert_same_losses(run(root, tmp_path, engine="deepspeed", zero_stage=3), plain_torch)


def test_zero_2_in_two_processes_takes_the_steps_of_plain_torch_in_one(root, tmp_path, plain_torch):
    assert_same_losses(run(root, tmp_path, ranks=2, engine="deepspeed", zero_stage=2), plain_torch)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_takes_the_same_steps(root, tmp_path, plain_torch, stage, ranks):
    assert_same_losses(run(root, tmp_path, ranks, engine="deepspeed", zero_stage=stage), plain_torch)


@pytest.mark.slow
def test_plain_torch_in_two_processes_takes_the_same_steps(root, tmp_path, plain_torch):
    assert_same_losses(run(root, tmp_path, ranks=2, engine="torch"), plain_torch)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_resumes_from_its_checkpoint(root, tmp_path, stage):
    whole = run(root, tmp_path / "a", ranks=2, engine="deepspeed", zero_stage=stage)
    run(root, tmp_path / "b", ranks=2, engine="deepspeed", zero_stage=stage)
    last = max((tmp_path / "b" / "checkpoints").iterdir())
    for file in sorted(
        last.rglob("*"), reverse=True
    ):  # the run had only got to the checkpoint before the last
        file.rmdir() if file.is_dir() else file.unlink()
    last.rmdir()
    assert run(root, tmp_path / "b", ranks=2, engine="deepspeed", zero_stage=stage) == whole
