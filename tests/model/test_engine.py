"""DeepSpeed's stages, one process or two, and plain torch take the same steps, and read each other's checkpoints.

Two processes are started once, for all their runs; single-process runs are in this one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from train_engines import one_run

SCRIPT = Path(__file__).with_name("train_engines.py")
STAGES, OPTIMIZERS = (0, 1, 2, 3), ("adamw", "muon")
STEPS, HALF = 6, 4
TORCH = {"engine": "torch"}


def two_ranks(root: Path, runs: list[dict]) -> list[dict]:
    """The results of train_engines.py in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SCRIPT), json.dumps(runs)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_same(run: dict, expected: dict, first: int = 0, tolerance: float = 5e-6) -> None:
    """Losses and gradient norms agree from step `first` on, up to the order of float additions."""
    assert run["loss"] == pytest.approx(expected["loss"][first:], abs=tolerance)
    assert run["grad_norm"] == pytest.approx(expected["grad_norm"][first:], rel=tolerance)


@pytest.fixture(scope="module")
def plain() -> dict[str, dict]:
    """The reference for all others: one process, one batch, plain torch."""
    return {name: one_run([0, STEPS], optimizer=name, micro_batches=1, **TORCH) for name in OPTIMIZERS}


@pytest.fixture(scope="module")
def one_rank_saved(tmp_path_factory) -> dict[str, str]:
    """Checkpoints of one process: optimiser -> folder. AdamW's from plain torch, Muon's from ZeRO 1."""
    folders = {name: str(tmp_path_factory.mktemp("one") / name) for name in OPTIMIZERS}
    one_run([0, HALF], save=folders["adamw"], **TORCH)
    one_run([0, HALF], save=folders["muon"], optimizer="muon", zero_stage=1)
    return folders


@pytest.fixture(scope="module")
def two(root, tmp_path_factory, one_rank_saved) -> dict[tuple, dict]:
    """(what, optimiser, stage) -> the result of two processes. Stage None: plain torch."""
    folder, runs = tmp_path_factory.mktemp("two"), {}
    for name in OPTIMIZERS:
        for stage in (None, *STAGES):
            how = {"optimizer": name} | (TORCH if stage is None else {"zero_stage": stage})
            saved = str(folder / f"{name}-{stage}")
            runs["whole", name, stage] = how | {"span": [0, STEPS], "save": saved, "save_after": HALF}
            runs["resumed", name, stage] = how | {"span": [HALF, STEPS], "load": saved}
            if name == "adamw":
                runs["bf16", name, stage] = how | {"span": [0, STEPS], "precision": "bf16"}
        if name == "adamw":
            runs["fp8", name, 3] = {"zero_stage": 3, "span": [0, STEPS], "precision": "fp8"}
        how = {"optimizer": name, "zero_stage": 3, "span": [HALF, STEPS]}
        runs["from one rank", name, 3] = how | {"load": one_rank_saved[name]}
        runs["from stage 1", name, 3] = how | {"load": str(folder / f"{name}-1")}
    results = two_ranks(root, list(runs.values()))
    return {key: result | runs[key] for key, result in zip(runs, results, strict=True)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stage", [0, 3])  # without offload a single process has nothing to shard: all are 0
def test_deepspeed_takes_the_steps_of_plain_torch(plain, stage, optimizer):
    assert_same(one_run([0, STEPS], optimizer=optimizer, zero_stage=stage), plain[optimizer])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stage", [None, *STAGES])
def test_two_processes_take_the_steps_of_one(plain, two, stage, optimizer):
    assert_same(two["whole", optimizer, stage], plain[optimizer])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stage", [None, *STAGES])
def test_two_processes_resume_to_the_same_bits(two, stage, optimizer):
    whole, resumed = two["whole", optimizer, stage], two["resumed", optimizer, stage]
    assert resumed["loss"] == whole["loss"][HALF:] and resumed["weights"] == whole["weights"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_processes_resume_from_a_checkpoint_of_one_or_of_another_stage(plain, two, optimizer):
    for what in ("from one rank", "from stage 1"):
        assert_same(two[what, optimizer, 3], plain[optimizer], first=HALF)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("saved", "loaded"), [(2, None), (3, None), (2, 0), (None, 3), (3, 2)])
def test_one_process_resumes_from_a_checkpoint_of_two(plain, two, saved, loaded, optimizer):
    folder = two["whole", optimizer, saved]["save"]
    how = TORCH if loaded is None else {"zero_stage": loaded, "offload": "optimizer" if loaded else "none"}
    assert_same(one_run([HALF, STEPS], load=folder, optimizer=optimizer, **how), plain[optimizer], first=HALF)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("stage", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "parameters")])
def test_offload_and_activation_checkpointing_change_no_step(plain, tmp_path, stage, offload, optimizer):
    how = {"optimizer": optimizer, "zero_stage": stage, "offload": offload}
    how["activation_checkpointing"] = True
    assert_same(one_run([0, STEPS], save=tmp_path / "half", save_after=HALF, **how), plain[optimizer])
    assert_same(one_run([HALF, STEPS], load=tmp_path / "half", **how), plain[optimizer], first=HALF)


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_takes_the_same_steps_at_all_stages(two, stage):
    assert_same(two["bf16", "adamw", stage], two["bf16", "adamw", None], tolerance=2e-3)


def test_float8_follows_float32_with_sharded_weights(plain, two):
    assert two["fp8", "adamw", 3]["loss"] == pytest.approx(plain["adamw"]["loss"], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "offload"), [(0, "none"), (2, "optimizer"), (3, "parameters")])
def test_a_compiled_model_takes_the_same_steps(plain, stage, offload):
    how = {"compile": True, "activation_checkpointing": stage > 0, "zero_stage": stage, "offload": offload}
    assert_same(one_run([0, STEPS], **how), plain["adamw"])


def test_a_checkpoint_that_lacks_a_file_is_refused(tmp_path):
    from model.training.checkpoint_files import CheckpointError
    from model.training.snapshot import Saved

    one_run([0, 1], save=tmp_path / "whole", **TORCH)
    (tmp_path / "whole" / "rank-00000.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"no rank-\*\.safetensors in it"):
        Saved(tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"holds 0 of the 4,096 numbers of .*q_proj.* \(exp_avg\)"):
        one_run([0, 1], save=tmp_path / "muon", optimizer="muon", **TORCH)
        one_run([0, 1], load=tmp_path / "muon", **TORCH)
