"""The whole chain at its smallest size, used as a user does, and under real kills.

One file, because the tests share one built project and a file's tests run in one worker.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.dataset as ds
import pytest

STAGES = (
    "raw_crawl@sample",
    "cleaned_corpus@sample",
    "training_set",
    "tokenizer",
    "base_model",
    "sft_model",
    "rl_model",
    "eval_reports",
)


def status(project) -> dict[str, dict]:
    return {row["stage"]: row for row in json.loads(project.stemma("status", "--json").stdout)}


def commit(project, message: str) -> None:
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=t", "-c", "user.email=t@t.example", "commit", "-qm", message)


def test_every_stage_is_made_and_current(built):
    rows = status(built)
    assert tuple(rows) == STAGES
    assert {row["state"] for row in rows.values()} == {"current"}
    assert all(row["version"] for row in rows.values())


def test_a_plan_says_what_the_base_model_takes_and_changes_nothing(built):
    before = (built.root / "params.yaml").read_text()
    found = json.loads(built.stemma("plan", "--preset", "gpt2-124M", "--devices", "8", "--json").stdout)
    assert found["expected"]["parameters"] == 123_588_864
    assert "layers" in built.stemma("plan").stdout
    assert (built.root / "params.yaml").read_text() == before


def test_a_scaling_law_is_drawn_from_models_of_two_depths(built):
    built.stemma("scaling", "--depths", "1,2", "--out", "work/law")
    found = json.loads((built.root / "work" / "law" / "scaling.json").read_text())
    small, large = found["points"]
    assert small["parameters"] < large["parameters"] and small["flops"] < large["flops"]
    assert (built.root / "work" / "law" / "scaling.png").stat().st_size > 10_000
    assert all(row["state"] == "current" for row in status(built).values())
    begun = time.time()
    built.stemma("scaling", "--depths", "1,2", "--out", "work/law")
    kept = list((built.root / "work" / "law").glob("depth-*/summary.json"))
    assert len(kept) == 2 and all(path.stat().st_mtime < begun for path in kept)


def test_dvc_finds_nothing_to_do_and_nothing_changed(built):
    assert "up to date" in built.run("dvc", "status").stdout
    before = (built.root / "dvc.lock").read_bytes()
    assert "Running stage" not in built.run("dvc", "repro").stdout
    assert (built.root / "dvc.lock").read_bytes() == before


def test_a_second_materialize_does_nothing_and_reports_it(built):
    before = status(built)
    assert "Nothing to do" in built.stemma("materialize").stderr
    assert status(built) == before


def test_dagster_dvc_and_mlflow_name_the_same_versions(built):
    report = json.loads(built.stemma("audit", "eval_reports", "--json").stdout)
    assert report["agrees"], report["disagreements"]
    text = json.dumps(report)
    for stage, row in status(built).items():
        assert row["version"] in text, stage


def test_one_changed_byte_upstream_is_named(built):
    documents = next((built.root / "data/cleaned_corpus/sample/documents").glob("*.parquet"))
    whole = documents.read_bytes()
    documents.unlink()  # it may be a link into DVC's cache
    documents.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    try:
        output = built.stemma("audit", "rl_model", code=2).stdout
        assert documents.name in output
    finally:
        documents.unlink()
        built.run("dvc", "checkout", "--force", "cleaned_corpus@sample")
    built.stemma("audit", "rl_model")


def test_transformers_loads_every_model_with_the_same_logits(built):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from model.hub.load import load_pretrained

    for name in ("base_model", "sft_model", "rl_model"):
        folder = built.root / "data" / name
        ours, _ = load_pretrained(folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("A river is a stream of water.").input_ids])
        with torch.inference_mode():
            assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-4), name


def test_the_reports_compare_three_models_with_intervals(built):
    report = json.loads((built.root / "data/eval_reports/report.json").read_text())
    text = (built.root / "data/eval_reports/report.md").read_text()
    for rates in (report["accuracy"], {m: k["refusal"] for m, k in report["knowledge"].items()}):
        assert set(rates) == {"base", "SFT", "RL"}
        assert all(rate["low"] <= rate["rate"] <= rate["high"] for rate in rates.values())
    assert "zstd" in text and "unigram" in text.lower()
    assert list((built.root / "data/eval_reports/plots").glob("*.png"))


def test_why_finds_a_kept_and_a_dropped_page(built):
    ledger = ds.dataset(built.root / "data/cleaned_corpus/sample/ledger").to_table().to_pylist()
    for outcome in ("kept", "dropped"):
        row = next(r for r in ledger if r["outcome"] == outcome and r["url"])
        found = json.loads(built.stemma("why", row["url"], "--json").stdout)
        assert row["record_id"] in {r["record_id"] for r in found}
    built.stemma("why", "https://nobody.example/never-crawled", code=3)


def test_chat_answers_from_the_command_line(built):
    assert built.stemma("chat", "rl_model", "--prompt", "Who are you?", "--max-tokens", "8").returncode == 0


def test_going_back_in_git_brings_back_the_older_model_and_dagster_reports_it(built, tmp_path: Path):
    project = type(built)(tmp_path / "project")
    shutil.copytree(built.root, project.root, symlinks=True)
    commit(project, "the first model")
    first = status(project)["eval_reports"]["version"]
    old = project.run("git", "rev-parse", "HEAD").stdout.strip()

    from resources.workspace import Workspace

    params = Workspace(project.root)
    params._edit_params(lambda p: p["rl_model"].update(seed=7))
    project.stemma("materialize")
    commit(project, "another seed")
    second = status(project)["rl_model"]["version"]

    project.run("git", "checkout", "-q", old)
    project.run("dvc", "checkout", "--force")
    assert status(project)["rl_model"]["state"] == "stale"
    project.stemma("sync")
    after = status(project)
    assert after["eval_reports"]["version"] == first
    assert after["rl_model"]["version"] != second
    assert {row["state"] for row in after.values()} == {"current"}
    assert "Nothing to do" in project.stemma("materialize").stderr


def test_a_page_that_an_older_crawl_has_is_not_trained_on_twice(built, tmp_path: Path):
    project = type(built)(tmp_path / "project")
    shutil.copytree(built.root, project.root, symlinks=True)
    again = tmp_path / "again.warc.gz"
    shutil.copy(next((project.root / "data/raw_crawl/sample").glob("*.warc.gz")), again)
    project.stemma("materialize", "training_set", "--crawl", f"web={again}")

    rows = ds.dataset(project.root / "data/training_set/ledger").to_table().to_pylist()
    assert rows and {(row["crawl"], row["outcome"], row["stage"]) for row in rows} == {
        ("web", "dropped", "dedup")
    }
    kept = ds.dataset(project.root / "data/cleaned_corpus/web/documents").to_table(columns=["record_id"])
    assert len(rows) == kept.num_rows
    for record, crawl, outcome in (
        (rows[0]["record_id"], "web", "dropped"),
        (rows[0]["duplicate_of"], "sample", "kept"),
    ):
        found = json.loads(project.stemma("why", record, "--json").stdout)
        assert {row["crawl"]: row["outcome"] for row in found}[crawl] == outcome


def test_repro_makes_a_changed_stage_through_dagster(built, tmp_path: Path):
    project = type(built)(tmp_path / "project")
    shutil.copytree(built.root, project.root, symlinks=True)
    from resources.workspace import Workspace

    Workspace(project.root)._edit_params(lambda p: p["tokenizer"].update(vocab_size=500))
    project.run("dvc", "repro", "tokenizer")
    row = status(project)["tokenizer"]
    assert row["state"] == "current"
    assert row["numbers"]["vocab_size"] == 500
    assert "up to date" in project.run("dvc", "status", "tokenizer").stdout


@pytest.mark.parametrize(
    "command", [[], ["materialize"], ["status"], ["clean"], ["chat"], ["audit"], ["why"]]
)
def test_every_command_explains_itself(root: Path, command):
    done = subprocess.run(
        [sys.executable, "stemma.py", *command, "--help"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "Usage" in done.stdout


# -- faults: nothing is left running, and a re-run ends with the bytes of an undisturbed run ----------------------

MATERIALIZE = ("python", "stemma.py", "materialize", "base_model")


@pytest.fixture
def ready(built, tmp_path: Path):
    """A project whose base model is out of date: longer to train, with a checkpoint every ten steps."""
    return _ready(built, tmp_path / "project")


@pytest.fixture(scope="module")
def undisturbed(built, tmp_path_factory) -> str:
    """The version of that base model when nothing goes wrong."""
    project = _ready(built, tmp_path_factory.mktemp("undisturbed") / "project")
    project.run(*MATERIALIZE)
    return version(project)


def _ready(built, to: Path):
    from resources.workspace import Workspace

    project = type(built)(to)
    shutil.copytree(built.root, to, symlinks=True)
    Workspace(to)._edit_params(lambda p: p["base_model"].update(tokens=81_920, checkpoint_every=10, seed=1))
    return project


def version(project) -> str:
    rows = {row["stage"]: row for row in json.loads(project.stemma("status", "--json").stdout)}
    assert rows["base_model"]["state"] == "current"
    return rows["base_model"]["version"]


def processes_of(project) -> list[psutil.Process]:
    """Every live process that was started in the project's folder or for it."""
    found = []
    for process in psutil.process_iter():
        try:
            where = " ".join(process.cmdline()) + " " + process.cwd()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if str(project.root) in where and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_for(what, seconds: float = 120):
    """Wait until `what()` returns something true; fail after `seconds` (a hang, not a slow machine)."""
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
    output = tmp_path / "second"
    first = ready.start(*MATERIALIZE)
    wait_for(lambda: trainer_after_a_checkpoint(ready))
    with output.open("w") as stderr:
        second = ready.start(*MATERIALIZE, stderr=stderr)
        assert first.wait(240) == 0
        assert second.wait(240) == 0
    assert "waiting for run" in output.read_text()
    assert version(ready) == undisturbed
