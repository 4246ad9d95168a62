"""A checkpoint is complete or absent; the trainer's tests exercise it with kills and full disks."""

import errno
import json
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.code import CodeReader, code_hash
from core.hashing import folder_sha256
from model.run_log import RunLog
from model.training.checkpoint import Checkpoints, damage
from model.training.checkpoint_files import CheckpointError
from model.training.world import World


@dataclass
class Content:
    """A snapshot of one rank that holds one text."""

    text: str = "weights"
    rank: int = 0
    hold: threading.Event | None = None  # write no sooner than this is set

    def write(self, folder):
        if self.hold is not None:
            assert self.hold.wait(20)
        (folder / f"rank-{self.rank:05d}.state").write_text(self.text)


def checkpoints_in(work, keep=2, world=World(), **identity) -> Checkpoints:  # noqa: B008 - frozen
    return Checkpoints(work, identity, world, RunLog(enabled=False), keep)


def save(checkpoints: Checkpoints, step: int, content: str = "weights", **options):
    checkpoints.save(step, {"step": step}, lambda: Content(content), **options)
    checkpoints.settle()
    return checkpoints.folder / f"step-{step:08d}"


def kept(checkpoints: Checkpoints) -> list[int]:
    return [int(folder.name.removeprefix("step-")) for folder in checkpoints.steps()]


def test_only_the_latest_are_kept_and_the_last_is_found(tmp_path):
    checkpoints = checkpoints_in(tmp_path)
    for step in (1, 2, 10):
        save(checkpoints, step)
    assert kept(checkpoints) == [2, 10]
    folder, state = checkpoints.latest()
    assert state == {"step": 10} and (folder / "rank-00000.state").read_text() == "weights"


def test_the_best_is_kept_until_there_is_a_better_one(tmp_path):
    checkpoints = checkpoints_in(tmp_path, keep=1)
    for step, score in ((1, 2.5), (2, 2.0), (3, 2.25), (4, None), (5, 2.0)):
        save(checkpoints, step, score=score)
    assert kept(checkpoints) == [2, 5] and checkpoints.best().name == "step-00000002"
    save(checkpoints, 6, score=1.5)
    assert kept(checkpoints) == [6]


def test_a_rollback_uses_a_periodic_checkpoint_and_removes_later_ones(tmp_path):
    checkpoints = checkpoints_in(tmp_path, keep=1)
    save(checkpoints, 10)
    save(checkpoints, 13, periodic=False)  # the user stopped the run
    save(checkpoints, 15, periodic=False)
    assert kept(checkpoints) == [10, 15]
    assert checkpoints.roll_back()[1] == {"step": 10} and kept(checkpoints) == [10]


def test_the_loop_continues_while_a_checkpoint_is_written_and_the_next_one_waits(tmp_path):
    checkpoints, hold, state = checkpoints_in(tmp_path), threading.Event(), {"step": 1}
    checkpoints.save(1, state, lambda: Content(hold=hold))
    state["step"] = 99  # the loop's own state changes; the checkpoint's does not
    assert kept(checkpoints) == []
    threading.Timer(0.1, hold.set).start()
    checkpoints.save(2, {"step": 2}, lambda: Content(f"taken when {kept(checkpoints)} was there"))
    checkpoints.settle()
    second, first = (json.loads((f / "checkpoint.json").read_text()) for f in reversed(checkpoints.steps()))
    assert (first["state"], second["state"]) == ({"step": 1}, {"step": 2})
    assert (checkpoints.steps()[1] / "rank-00000.state").read_text() == "taken when [1] was there"


class Broken:
    def write(self, folder):
        (folder / "rank-00000.state").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_is_reported_and_leaves_nothing_that_looks_complete(tmp_path):
    checkpoints = checkpoints_in(tmp_path)
    save(checkpoints, 1)
    checkpoints.save(2, {"step": 2}, Broken)
    with pytest.raises(
        CheckpointError, match=r"step 2 could not be written \(No space left.*step-00000001 is whole"
    ):
        checkpoints.settle()
    assert checkpoints.failed and [f.name for f in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_what_a_killed_run_was_writing_or_removing_is_removed(tmp_path):
    checkpoints = checkpoints_in(tmp_path)
    save(checkpoints, 1)
    for leaving in ("step-00000002.partial", "step-00000000.going"):
        (checkpoints.folder / leaving).mkdir()
        (checkpoints.folder / leaving / "rank-00000.state").write_text("half")
    assert checkpoints_in(tmp_path).latest()[1] == {"step": 1}
    assert [f.name for f in checkpoints.folder.iterdir()] == ["step-00000001"]


def two_ranks(tmp_path) -> list[Checkpoints]:
    """Two processes' views of one folder; a writer does nothing collective, so threads can stand for processes."""
    return [checkpoints_in(tmp_path, world=World(rank, 2)) for rank in (0, 1)]


def test_rank_0_completes_the_folder_when_all_ranks_have_written(tmp_path):
    first, second = two_ranks(tmp_path)
    hold = threading.Event()
    second.save(1, {"step": 1}, lambda: Content("b", rank=1, hold=hold))
    first.save(1, {"step": 1}, lambda: Content("a"), texts={"curve.jsonl": "c"})
    time.sleep(0.1)
    assert kept(first) == []
    hold.set()
    first._join()
    (folder,) = first.steps()
    assert sorted(f.name for f in folder.iterdir()) == [
        "checkpoint.json",
        "curve.jsonl",
        "rank-00000.state",
        "rank-00001.state",
    ]
    assert damage(folder) is None
    (folder / "rank-00001.state").write_text("B")
    assert damage(folder, slice(2, None, 3)) and not damage(folder, slice(1, None, 3))


def test_a_rank_that_cannot_write_ends_the_wait_of_rank_0(tmp_path):
    first, second = two_ranks(tmp_path)
    second.save(1, {"step": 1}, Broken)
    first.save(1, {"step": 1}, Content)
    first._join()
    with pytest.raises(CheckpointError, match="Process 1 could not write its part"):
        first.raise_failure()
    with pytest.raises(CheckpointError, match="No space left"):
        second._join()
        second.raise_failure()
    assert kept(first) == []


@pytest.mark.parametrize("how", ["truncate", "flip", "remove", "record"])
def test_damage_of_every_kind_is_named(tmp_path, how):
    folder = save(checkpoints_in(tmp_path), 1)
    assert damage(folder) is None
    match how:
        case "truncate":
            (folder / "rank-00000.state").write_text("weig")
        case "flip":
            (folder / "rank-00000.state").write_text("Weights")
        case "remove":
            (folder / "rank-00000.state").unlink()
        case "record":
            (folder / "checkpoint.json").write_text("{")
    assert ("checkpoint.json" if how == "record" else "rank-00000.state") in damage(folder)


def test_another_parent_is_refused_by_name(tmp_path):
    save(checkpoints_in(tmp_path, parent="abc", config={"lr": 0.1, "clip": math.inf}), 1)
    with pytest.raises(
        CheckpointError,
        match=r"parent was abc, is xyz; .*remove .*checkpoints to train from the start|parent was",
    ):
        checkpoints_in(tmp_path, parent="xyz", config={"lr": 0.1, "clip": math.inf}).latest()
    assert checkpoints_in(tmp_path, parent="abc", config={"lr": 0.1, "clip": math.inf}).latest() is not None


def test_hashes_see_every_change(root, tmp_path):
    def hash_of(*modules):
        return CodeReader(root).closure(f"model.{module}" for module in modules).hash()

    checkpoint, shards = "training.checkpoint", "data.shards"
    assert hash_of(checkpoint, shards) == hash_of(shards, checkpoint) != hash_of(shards)
    (tmp_path / "a").write_text("1")
    before = folder_sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert folder_sha256(tmp_path) != before


def test_the_record_holds_what_the_checkpoint_belongs_to(tmp_path):
    folder = save(checkpoints_in(tmp_path, data="d", code="c"), 3)
    record = json.loads((folder / "checkpoint.json").read_text())
    assert record["identity"] == {"data": "d", "code": "c"} and record["step"] == 3
    assert len(record["sha256"]["rank-00000.state"]) == 64


def test_a_programs_hash_covers_what_it_imports(root):
    imported = {Path(name).stem for name in CodeReader(root).closure(["model.pretrain"]).files}
    assert {"trainer", "loader", "scaling_recipe", "transformer"} <= imported
    hashes = {name: code_hash(f"model.{name}", root) for name in ("pretrain", "sft", "hub.load")}
    assert len(set(hashes.values())) == 3
