"""The workspace: parameters edited with their comments, versions published whole, one writer a stage."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tiny_project import ROOT

from core.errors import WorkspaceError
from resources.workspace import Workspace

PARAMS = """\
# The settings.
crawls:
  sample: # a small web
    source: sample
    pages: 3000 # about

tokenizer:
  vocab_size: 1024 # small
  pattern: 'a"b'
base_model: {}
lr: 1e-3
"""


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "params").mkdir()
    return Workspace(tmp_path)


@contextmanager
def as_nobody():
    """Root may write anywhere; these tests must not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A project folder that a user without rights can reach (pytest's own is closed to others)."""
    folder = Path(tempfile.mkdtemp(prefix="stemma-test-"))
    folder.chmod(0o777)
    (folder / "params.yaml").write_text(PARAMS)
    yield folder
    for place in [folder, *folder.rglob("*")]:
        if place.is_dir():
            place.chmod(0o777)
    shutil.rmtree(folder)


# -- parameters


def test_sections_are_read_as_dvc_reads_them(workspace):
    from dvc.utils.serialize import load_yaml

    assert workspace.params() == load_yaml(str(workspace.params_file))
    assert workspace.params()["lr"] == 1e-3
    assert workspace.section("tokenizer") == {"vocab_size": 1024, "pattern": 'a"b'}
    assert workspace.section("base_model") == {}
    assert workspace.section("raw_crawl@sample") == {"source": "sample", "pages": 3000}
    with pytest.raises(WorkspaceError, match="names no crawl 'news'"):
        workspace.section("raw_crawl@news")
    with pytest.raises(WorkspaceError, match="no section 'rl_model'"):
        workspace.section("rl_model")


def test_a_new_crawl_leaves_every_comment_and_line_as_it_was(workspace):
    assert workspace.set_crawl("CC-MAIN-2026-45", {"source": "warc", "paths": "../crawl/*.warc.gz"})
    text = workspace.params_file.read_text()
    assert workspace.params()["crawls"]["CC-MAIN-2026-45"] == {
        "source": "warc",
        "paths": "../crawl/*.warc.gz",
    }
    added = [line for line in text.splitlines() if line not in PARAMS.splitlines()]
    kept = [line for line in PARAMS.splitlines() if line in text.splitlines()]
    assert kept == PARAMS.splitlines() and len(added) == 3
    assert not workspace.set_crawl("CC-MAIN-2026-45", {"source": "warc", "paths": "../crawl/*.warc.gz"})
    assert workspace.params_file.read_text() == text
    assert workspace.drop_crawl("CC-MAIN-2026-45") and workspace.params_file.read_text() == PARAMS


@pytest.mark.parametrize("name", ["a.b", "", "a/b", "a b", "-a", "ä", "a@b", "../x"])
def test_a_name_that_dvc_could_not_carry_is_refused(workspace, name):
    with pytest.raises(WorkspaceError, match="cannot name a crawl"):
        workspace.set_crawl(name, {"source": "sample"})
    assert workspace.params_file.read_text() == PARAMS


def test_a_preset_is_laid_over_and_says_what_it_changed(workspace):
    preset = (
        "tokenizer: {vocab_size: 300}\nbase_model: {depth: 1}\ncrawls: {sample: null, tiny: {pages: 20}}\n"
    )
    (workspace.root / "params/tiny.yaml").write_text(preset)
    assert workspace.apply_preset("tiny") == [
        "tokenizer.vocab_size: 1024 -> 300",
        "base_model.depth: (default) -> 1",
        "crawls.sample: taken out",
        'crawls.tiny: (default) -> {"pages": 20}',
    ]
    assert workspace.params() == {
        "crawls": {"tiny": {"pages": 20}},
        "tokenizer": {"vocab_size": 300, "pattern": 'a"b'},
        "base_model": {"depth": 1},
        "lr": 1e-3,
    }
    assert (
        "# The settings." in workspace.params_file.read_text()
        and "# small" in workspace.params_file.read_text()
    )
    assert workspace.apply_preset("tiny") == []
    with pytest.raises(WorkspaceError, match=r"no preset 'huge' .* There are: tiny"):
        workspace.apply_preset("huge")


def test_every_preset_of_this_project_can_be_laid_over_its_params(tmp_path, root):
    shutil.copy(root / "params.yaml", tmp_path)
    shutil.copytree(root / "params", tmp_path / "params")
    for preset in sorted((root / "params").glob("*.yaml")):
        workspace = Workspace(tmp_path)
        workspace.apply_preset(preset.stem)
        assert workspace.apply_preset(preset.stem) == []


def test_broken_or_missing_params_are_sentences(workspace):
    workspace.params_file.write_text("crawls: [")
    with pytest.raises(WorkspaceError, match=r"params\.yaml is not valid YAML"):
        workspace.params()
    workspace.params_file.unlink()
    with pytest.raises(WorkspaceError, match="Run Stemma in the project's folder"):
        workspace.params()


# -- publishing


def done(workspace: Workspace, text: str) -> Path:
    out = workspace.work_path("tokenizer", "key") / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "a.txt").write_text(text)
    return out


def test_publishing_replaces_the_whole_folder(workspace):
    out = workspace.out_path("tokenizer")
    first = done(workspace, "one")
    (first / "old.txt").write_text("old")
    workspace.publish(first, out)
    assert not first.exists()
    workspace.publish(done(workspace, "two"), out)
    assert {p.name for p in out.rglob("*")} == {"deep", "a.txt"}
    assert (out / "deep/a.txt").read_text() == "two"
    assert [p for p in (workspace.root / "work").rglob("*") if p.is_file()] == [], "nothing old is left"
    assert workspace.out_path("cleaned_corpus@sample") == workspace.root / "data/cleaned_corpus/sample"


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_publishing_over_links_into_the_cache_leaves_the_cache_alone(workspace, link):
    cache = workspace.root / "cache.bin"
    cache.write_text("precious")
    cache.chmod(0o444)
    out = workspace.out_path("tokenizer")
    (out / "deep").mkdir(parents=True)
    link(cache, out / "deep/a.txt")
    workspace.publish(done(workspace, "new"), out)
    assert cache.read_text() == "precious" and (out / "deep/a.txt").read_text() == "new"
    assert not (out / "deep/a.txt").is_symlink()


def test_publishing_replaces_read_only_folders(open_folder):
    with as_nobody():
        workspace = Workspace(open_folder)
        out = workspace.out_path("tokenizer")
        workspace.publish(done(workspace, "one"), out)
        (out / "deep/a.txt").chmod(0o444)
        (out / "deep").chmod(0o555)
        workspace.publish(done(workspace, "two"), out)
        assert (out / "deep/a.txt").read_text() == "two"


def test_killed_between_the_two_renames_a_re_run_publishes(workspace, monkeypatch):
    out = workspace.out_path("tokenizer")
    workspace.publish(done(workspace, "one"), out)
    finished, rename = done(workspace, "two"), os.rename

    def killed(source, target):
        if Path(source) == finished:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        workspace.publish(finished, out)
    monkeypatch.undo()
    assert finished.exists() and not out.exists(), "the new version whole, or none: never half of one"
    workspace.publish(finished, out)
    workspace.publish(done(workspace, "three"), out)
    assert (out / "deep/a.txt").read_text() == "three"
    assert not any((workspace.root / "work/.trash").iterdir())


def test_nothing_to_publish_is_a_sentence_and_the_old_version_stays(workspace):
    out = workspace.out_path("tokenizer")
    workspace.publish(done(workspace, "one"), out)
    with pytest.raises(WorkspaceError, match="nothing to publish"):
        workspace.publish(workspace.root / "work/none", out)
    assert (out / "deep/a.txt").read_text() == "one"


def test_discarded_work_is_gone(workspace):
    done(workspace, "one")
    workspace.discard_work("tokenizer")
    assert not (workspace.root / "work/tokenizer").exists()
    workspace.discard_work("tokenizer")


# -- disk


def test_a_read_only_output_folder_is_a_sentence_and_nothing_is_lost(open_folder):
    with as_nobody():
        workspace = Workspace(open_folder)
        out = workspace.out_path("tokenizer")
        workspace.publish(done(workspace, "one"), out)
        (open_folder / "data").chmod(0o555)
        finished = done(workspace, "two")
        with pytest.raises(WorkspaceError, match=r"data cannot be written .* 'chmod u\+w data'"):
            workspace.publish(finished, out)
        assert (out / "deep/a.txt").read_text() == "one" and (finished / "deep/a.txt").read_text() == "two"
        (open_folder / "data").chmod(0o755)
        workspace.publish(finished, out)
        assert (out / "deep/a.txt").read_text() == "two"


def test_a_read_only_work_folder_or_params_file_is_a_sentence(open_folder):
    with as_nobody():
        workspace = Workspace(open_folder)
        (open_folder / "work").mkdir()
        (open_folder / "work").chmod(0o555)
        with pytest.raises(WorkspaceError, match=r"tokenizer: work/tokenizer.* cannot be written"):
            workspace.work_path("tokenizer", "key")
        with pytest.raises(WorkspaceError, match="cannot be written"), workspace.lock("tokenizer"):
            pass
    open_folder.chmod(0o755)
    if os.geteuid() == 0:
        with as_nobody(), pytest.raises(WorkspaceError, match=r"params\.yaml.* cannot be written"):
            Workspace(open_folder).set_crawl("more", {"source": "sample"})
    assert (open_folder / "params.yaml").read_text() == PARAMS


def test_a_full_disk_is_a_sentence(workspace):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(WorkspaceError, match=r"base_model: the disk is full .* run again: it resumes"),
        workspace.plain_errors("base_model"),
        open(full, "wb", buffering=0) as file,
    ):
        file.write(b"x")
    with pytest.raises(OSError, match="hang up"), workspace.plain_errors("base_model"):
        raise OSError(errno.EPIPE, "hang up")  # what the user cannot fix stays as it is


def test_too_little_space_is_said_before_the_work_begins(workspace):
    workspace.check_space(1)
    with pytest.raises(WorkspaceError, match=r"base_model needs about 1,000,000,000.0 GB and the disk"):
        workspace.check_space(10**18, "base_model")


def test_params_survive_a_disk_that_fills_while_they_are_written(workspace, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkspaceError, match="disk is full"):
        workspace.set_crawl("more", {"source": "sample"})
    assert workspace.params_file.read_text() == PARAMS
    assert sorted(p.name for p in workspace.root.iterdir()) == ["params", "params.yaml"]


# -- the lock

HOLD = """\
import os, sys, time
from resources.workspace import Workspace
with Workspace(sys.argv[1]).lock("tokenizer"):
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(workspace: Workspace, *more: str):
    command = [sys.executable, "-c", HOLD, str(workspace.root), *more]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)
    assert process.stdout.readline().strip() == "held"
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_waiting_says_who_holds_the_lock_and_since_when(workspace):
    said: list[str] = []
    with holder(workspace) as process:
        with (
            pytest.raises(
                WorkspaceError, match=rf"being made by process {process.pid} \(since \d\d:\d\d:\d\d\)"
            ),
            workspace.lock("tokenizer", say=said.append, timeout=0.5),
        ):
            pass
        assert said[0].startswith(f"tokenizer: waiting for process {process.pid} (since ")
        assert len(said) == 1, "said once, not at every try"
        with workspace.lock("base_model", timeout=0.5):
            pass  # another stage is free


@pytest.mark.parametrize("child", ["alone", "fork"])
def test_a_killed_holder_frees_the_lock_even_if_its_child_lives_on(workspace, child):
    with holder(workspace, child) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with workspace.lock("tokenizer", timeout=20):
            pass


def test_threads_and_processes_exclude_each_other(workspace):
    inside, most, log = 0, 0, []

    def enter():
        nonlocal inside, most
        with workspace.lock("tokenizer", say=log.append):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1

    counter = workspace.root / "counter"
    counter.write_text("0")
    add = (
        "import sys, time; from pathlib import Path; from resources.workspace import Workspace\n"
        "w = Workspace(sys.argv[1]); c = w.root / 'counter'\n"
        "for _ in range(5):\n"
        "    with w.lock('tokenizer', say=lambda text: None):\n"
        "        n = int(c.read_text()); time.sleep(.01); c.write_text(str(n + 1))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    many = [subprocess.Popen([sys.executable, "-c", add, str(workspace.root)], env=env) for _ in range(3)]
    assert [process.wait(timeout=120) for process in many] == [0, 0, 0]
    assert counter.read_text() == "15"


def test_the_lock_is_freed_after_an_error(workspace):
    with pytest.raises(ZeroDivisionError), workspace.lock("tokenizer"):
        raise ZeroDivisionError
    with workspace.lock("tokenizer", timeout=1):
        pass
