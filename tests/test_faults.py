"""The chain under real kills: nothing is left running, and a plain re-run ends with the undisturbed bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

MATERIALIZE = ("python", "stemma.py", "materialize", "base_model")


@pytest.fixture
def ready(grown, tmp_path: Path):
    """A project whose base model is out of date: longer to train, with a checkpoint every ten steps."""
    return _ready(grown, tmp_path / "project")


@pytest.fixture(scope="module")
def undisturbed(grown, tmp_path_factory) -> str:
    """The version of that base model when nothing goes wrong."""
    project = _ready(grown, tmp_path_factory.mktemp("undisturbed") / "project")
    project.run(*MATERIALIZE)
    return version(project)


def _ready(grown, to: Path):
    from resources.workspace import Workspace

    project = type(grown)(to)
    shutil.copytree(grown.root, to, symlinks=True)
    Workspace(to)._edit_params(lambda p: p["base_model"].update(tokens=81_920, checkpoint_every=10, seed=1))
    return project


def version(project) -> str:
    rows = {row["stage"]: row for row in json.loads(project.stemma("status", "--json").stdout)}
    assert rows["base_model"]["state"] == "current"
    return rows["base_model"]["version"]


def processes_of(project) -> list[psutil.Process]:
    """Every live process that was started in, or for, the project's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            told = " ".join(process.cmdline()) + " " + process.cwd()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if str(project.root) in told and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_for(what, seconds: float = 120):
    """Wait until `what()` gives something true; fail after `seconds` (a hang, not a slow machine)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


def trainer_after_a_checkpoint(project) -> psutil.Process | None:
    if not list(project.root.glob("work/base_model/*/pretrain/checkpoints/*")):
        return None
    trainers = [
        p for p in processes_of(project) if p.cmdline()[1:3] == ["-m", "model.pretrain"] and p.is_running()
    ]
    return trainers[0] if trainers else None


def test_a_killed_trainer_fails_the_step_and_a_rerun_ends_with_the_same_bytes(ready, undisturbed):
    command = ready.start(*MATERIALIZE)
    wait_for(lambda: trainer_after_a_checkpoint(ready)).kill()
    assert command.wait(120) == 1
    wait_for(lambda: not processes_of(ready))
    ready.run(*MATERIALIZE)
    assert version(ready) == undisturbed


def test_a_killed_step_leaves_no_process_and_a_rerun_ends_with_the_same_bytes(ready, undisturbed):
    command = ready.start(*MATERIALIZE)
    wait_for(lambda: trainer_after_a_checkpoint(ready))
    command.kill()
    command.wait(60)
    wait_for(lambda: not processes_of(ready))
    ready.run(*MATERIALIZE)
    assert version(ready) == undisturbed


def test_a_cancelled_run_leaves_no_process(ready):
    command = ready.start(*MATERIALIZE)
    wait_for(lambda: trainer_after_a_checkpoint(ready))
    os.killpg(command.pid, signal.SIGINT)
    assert command.wait(120) != 0
    wait_for(lambda: not processes_of(ready))


def test_of_two_at_once_the_second_waits_and_both_end_with_the_same_version(ready, undisturbed, tmp_path):
    said = tmp_path / "second"
    first = ready.start(*MATERIALIZE)
    wait_for(lambda: trainer_after_a_checkpoint(ready))
    with said.open("w") as stderr:
        second = ready.start(*MATERIALIZE, stderr=stderr)
        assert first.wait(240) == 0
        assert second.wait(240) == 0
    assert "waiting for run" in said.read_text()
    assert version(ready) == undisturbed
