"""The DVC ledger against DVC itself: in small git repositories with real `dvc` commands beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest
from tiny_project import DVC, make, sh

from core.errors import WorkspaceError
from core.hashing import file_md5
from resources.dvc_hashes import dir_md5, files_of, path_md5
from resources.dvc_ledger import DvcLedger
from resources.git import git_state
from resources.workspace import Workspace


def test_our_reading_of_dvc_yaml_agrees_with_dvcs(chain, root):
    """For the small chain and for the real dvc.yaml of this repository."""
    from dvc.repo import Repo

    for place in (chain, root):
        ledger = DvcLedger(place)
        with Repo(str(place)) as repo:
            theirs = {s.name: s for s in repo.index.stages if s.cmd}
        assert set(ledger.chain.every) == set(theirs)
        for name, ours in ledger.chain.every.items():
            stage = theirs[name]
            assert ours.cmd == stage.cmd
            assert [ours.out] == [out.def_path for out in stage.outs]
            params = {dep.def_path for dep in stage.params}
            assert {*ours.data_deps, *ours.code_deps} == {d.def_path for d in stage.deps} - params
            assert sorted(ours.params) == sorted(p for dep in stage.params for p in dep.params)


def test_definitions_load_without_importing_dvc(chain):
    code = (
        "import sys; from resources.dvc_ledger import DvcLedger; ledger = DvcLedger('.');"
        "ledger.code_version('tokenizer'); ledger.recorded('tokenizer'); ledger.chain.in_order();"
        "print([m for m in ('dvc', 'torch', 'dagster', 'mlflow') if m in sys.modules])"
    )
    assert sh(chain, sys.executable, "-c", code).strip() == "[]"


def test_folder_hash_equals_dvcs(chain):
    folder = chain / "data" / "tokenizer"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/z.bin", "deep/ä b.txt", "deep-er", "Z"):
        (folder / name).write_bytes(name.encode() * 3)
    (folder / "deep/__pycache__").mkdir()
    (folder / "deep/__pycache__/a.pyc").write_bytes(b"compiled")
    assert DvcLedger(chain).hash_out("tokenizer") == path_md5(folder)
    assert path_md5(folder) == dir_md5({str(f.relative_to(folder)): file_md5(f) for f in files_of(folder)})


def test_after_commit_dvc_status_is_clean_and_repro_skips_everything(chain):
    ledger = DvcLedger(chain)
    versions = {}
    for name in ledger.chain.in_order():
        assert ledger.changes(name) == [f"{ledger.chain.stage(name).out} was never made"]
        assert ledger.recorded(name) is None
        versions[name] = make(chain, name)
        assert ledger.recorded(name) == versions[name] == path_md5(chain / ledger.chain.stage(name).out)
        assert ledger.changes(name) == []
    assert json.loads(sh(chain, DVC, "status", "--json")) == {}
    before = (chain / "dvc.lock").read_bytes()
    said = sh(chain, DVC, "repro")
    assert said.count("didn't change, skipping") == len(versions) and "Running" not in said
    assert (chain / "dvc.lock").read_bytes() == before


def test_repro_gives_the_same_versions_as_committing_does(chain):
    ledger = DvcLedger(chain)
    ours = {name: make(chain, name) for name in ledger.chain.in_order()}
    lock = (chain / "dvc.lock").read_bytes()
    (chain / "dvc.lock").unlink()
    sh(chain, sys.executable, "-c", "import shutil; shutil.rmtree('data'); shutil.rmtree('.dvc/cache')")
    said = sh(chain, DVC, "repro")
    assert said.count("Running stage") == len(ours)
    assert {name: ledger.recorded(name) for name in ours} == ours
    assert (chain / "dvc.lock").read_bytes() == lock
    hashed = [line for line in (chain / "hashed.log").read_text().splitlines() if line.endswith("repro")]
    assert [line.split()[:2] for line in hashed] == [[n, ours[n]] for n in ledger.chain.in_order()]


def test_changes_name_the_code_parameter_input_command_or_output_that_changed(chain):
    ledger = DvcLedger(chain)
    for name in ledger.chain.in_order():
        make(chain, name)
    with open(chain / "code/clean.py", "a") as file:
        file.write("# other\n")
    assert ledger.changes("cleaned_corpus@sample") == ["code/clean.py changed"]
    assert ledger.changes("tokenizer") == []
    params = (chain / "params.yaml").read_text()
    (chain / "params.yaml").write_text(params.replace("vocab_size: 1024", "vocab_size: 2048"))
    assert ledger.changes("tokenizer") == ["tokenizer in params.yaml changed"]
    make(chain, "cleaned_corpus@sample")
    assert ledger.changes("tokenizer")[0] == "data/cleaned_corpus changed"
    (chain / "data/base_model/made.txt").unlink()
    assert ledger.changes("base_model")[-1] == "data/base_model is not what dvc.lock records"
    sh(chain, sys.executable, "-c", "import shutil; shutil.rmtree('data/base_model')")
    assert ledger.changes("base_model")[-1] == "data/base_model is missing"
    text = (chain / "dvc.yaml").read_text()
    (chain / "dvc.yaml").write_text(text.replace("make_stage.py base_model", "make_stage.py  base_model"))
    assert "its command in dvc.yaml changed" in ledger.changes("base_model")


def test_code_version_follows_the_code_and_the_lock_remembers_it(chain):
    ledger = DvcLedger(chain)
    for name in ledger.chain.in_order():
        make(chain, name)
    for name, stage in ledger.chain.stages.items():
        assert ledger.recorded_code_version(name) == ledger.code_version(stage.asset)
    old = ledger.code_version("cleaned_corpus")
    source = (chain / "code/clean.py").read_text()
    (chain / "code/clean.py").write_text(source + "# other\n")
    assert (
        ledger.code_version("cleaned_corpus") != old == ledger.recorded_code_version("cleaned_corpus@sample")
    )
    (chain / "code/clean.py").write_text(source)
    assert ledger.code_version("cleaned_corpus") == old
    (chain / "code/clean.py").unlink()
    with pytest.raises(WorkspaceError, match=r"code/clean\.py: named by stage 'cleaned_corpus'"):
        ledger.code_version("cleaned_corpus")


def test_a_crawl_that_nobody_names_is_refused_not_read(chain):
    ledger = DvcLedger(chain)
    for name in ledger.chain.in_order():
        make(chain, name)
    stray = chain / "data/cleaned_corpus/old"
    stray.mkdir()
    (stray / "documents.txt").write_text("from a crawl of last year")
    for call in (ledger.changes, ledger.commit):
        with pytest.raises(WorkspaceError, match="data/cleaned_corpus/old stands where everything is read"):
            call("tokenizer")
    assert ledger.changes("raw_crawl@sample") == []
    assert ledger.undeclared() == ["data/cleaned_corpus/old"]


def test_retired_crawl_leaves_only_if_the_cache_has_it_and_comes_back(chain):
    ledger = DvcLedger(chain)
    Workspace(chain).set_crawl("second", {"source": "sample", "pages": 5})
    for name in ledger.chain.in_order():
        make(chain, name)
    with_two = ledger.recorded("tokenizer")
    kept = (chain / "data/cleaned_corpus/second/made.txt").read_bytes()
    (chain / "data/cleaned_corpus/second/new.txt").write_text("never committed")
    with pytest.raises(WorkspaceError, match=r"second/new\.txt is not in DVC's cache"):
        ledger.retire_crawl("second")
    assert (chain / "data/raw_crawl/second").exists() and "second" in Workspace(chain).params()["crawls"]
    (chain / "data/cleaned_corpus/second/new.txt").unlink()
    assert ledger.retire_crawl("second") == ["data/cleaned_corpus/second", "data/raw_crawl/second"]
    assert ledger.changes("tokenizer") == ["data/cleaned_corpus changed"]
    make(chain, "tokenizer")
    assert ledger.recorded("tokenizer") != with_two
    Workspace(chain).set_crawl("second", {"source": "sample", "pages": 5})
    sh(chain, DVC, "checkout", "cleaned_corpus@second", "raw_crawl@second")
    assert (chain / "data/cleaned_corpus/second/made.txt").read_bytes() == kept
    with pytest.raises(WorkspaceError, match="There is no crawl 'third'"):
        ledger.retire_crawl("third")


@pytest.mark.parametrize("link", ["hardlink", "symlink", "copy", "reflink,hardlink,symlink,copy"])
def test_a_new_version_never_writes_into_the_cache(chain, link):
    sh(chain, DVC, "config", "cache.type", link)
    ledger = DvcLedger(chain)
    make(chain, "raw_crawl@sample")
    cached = {p: p.read_bytes() for p in (chain / ".dvc/cache").rglob("*") if p.is_file()}
    made = chain / "data/raw_crawl/sample/made.txt"
    if link in ("hardlink", "symlink"):
        assert made.stat().st_mode & 0o222 == 0, (
            "a linked output is read-only, so that no reader spoils the cache"
        )
    first = ledger.recorded("raw_crawl@sample")
    Workspace(chain).set_crawl("sample", {"source": "sample", "pages": 7})
    assert make(chain, "raw_crawl@sample") != first
    assert {p: p.read_bytes() for p in cached} == cached
    assert all(file_md5(p) == (p.parent.name + p.name).removesuffix(".dir") for p in cached)


def test_a_damaged_cache_object_does_not_come_back_over_good_bytes(chain):
    sh(chain, DVC, "config", "cache.type", "hardlink")
    ledger = DvcLedger(chain)
    version = make(chain, "raw_crawl@sample")
    made = chain / "data/raw_crawl/sample/made.txt"
    good = made.read_bytes()
    made.chmod(0o644)
    with open(made, "r+b") as file:  # a hard link: the cache's copy is the same file
        file.write(bytes([good[0] ^ 1]))
    made.chmod(0o444)
    assert ledger.changes("raw_crawl@sample") != []
    assert make(chain, "raw_crawl@sample") == version
    assert made.read_bytes() == good
    assert path_md5(made.parent) == version and ledger.changes("raw_crawl@sample") == []


def test_git_checkout_and_dvc_checkout_roll_back(chain):
    ledger = DvcLedger(chain)
    old = {name: make(chain, name) for name in ledger.chain.in_order()}
    sh(chain, "git", "add", "-A")
    sh(chain, "git", "commit", "-qm", "first")
    Workspace(chain).set_crawl("sample", {"source": "sample", "pages": 8})
    new = {name: make(chain, name) for name in ledger.chain.in_order()}
    assert not set(old.values()) & set(new.values())
    sh(chain, "git", "commit", "-qam", "second")
    sh(chain, "git", "checkout", "-q", "HEAD~1")
    sh(chain, DVC, "checkout")
    assert {name: ledger.recorded(name) for name in old} == old
    assert {name: ledger.hash_out(name) for name in old} == old
    assert all(ledger.changes(name) == [] for name in old)


def test_commit_waits_for_dvcs_lock(chain):
    ledger = DvcLedger(chain)
    make(chain, "raw_crawl@sample")
    code = (
        "import time; from dvc.repo import Repo, lock_repo\n"
        "with lock_repo(Repo('.')): print('held', flush=True); time.sleep(5)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=chain, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline().strip() == "held"
    assert ledger.commit("raw_crawl@sample") == ledger.recorded("raw_crawl@sample")  # DVC gives up after 3 s
    assert holder.wait(timeout=30) == 0


def test_two_commits_at_once_both_land_in_the_lock(chain):
    Workspace(chain).set_crawl("second", {"source": "sample", "pages": 5})
    ledger = DvcLedger(chain)
    found: dict[str, str] = {}
    names = ["raw_crawl@sample", "raw_crawl@second"]

    def run(name: str) -> None:
        sh(chain, sys.executable, "make_stage.py", name)
        found[name] = ledger.hash_out(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: ledger.recorded(name) for name in names}


def test_git_state_overlooks_the_lock_and_the_statements(chain):
    ledger = DvcLedger(chain)
    sh(chain, "git", "remote", "add", "origin", "https://someone:secret@example.org/us/model.git")
    (chain / "provenance").mkdir()
    (chain / "provenance/a.json").write_text("{}")
    (chain / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    state = git_state(ledger.root)
    assert (
        len(state.commit) == 40 and state.dirty == () and state.remote == "https://example.org/us/model.git"
    )
    assert git_state(ledger.root).name == state.commit
    (chain / "code/clean.py").write_text("pass\n")
    assert git_state(ledger.root).dirty == ("code/clean.py",) and git_state(ledger.root).name.endswith(
        "-dirty"
    )


def test_mistakes_in_dvc_yaml_are_sentences(chain):
    ledger = DvcLedger(chain)
    good = (chain / "dvc.yaml").read_text()
    for bad, words in [
        (good.replace("${crawls}", "${crawl}"), r"\$\{crawl\} names nothing in params.yaml"),
        (good.replace("outs: [data/tokenizer]", "outs: [data/tokenizer, data/more]"), "name exactly one out"),
        (good.replace("  tokenizer:\n", "  tokenizer:\n    wdir: code\n"), "'wdir' is not understood"),
        (good + "  [", "dvc.yaml is not valid YAML"),
    ]:
        time.sleep(0.01)
        (chain / "dvc.yaml").write_text(bad)
        with pytest.raises(WorkspaceError, match=words):
            assert ledger.chain
    (chain / "dvc.yaml").write_text(good)
    with pytest.raises(
        WorkspaceError, match=r"dvc\.yaml has no stage 'tokeniser'\. It has: raw_crawl@sample"
    ):
        ledger.changes("tokeniser")
    with pytest.raises(
        WorkspaceError, match=r"data/tokenizer is not there\. Make it: stemma materialize tokenizer"
    ):
        ledger.commit("tokenizer")


def test_a_missing_project_is_a_sentence(tmp_path):
    with pytest.raises(WorkspaceError, match="Run Stemma in the project's folder"):
        assert DvcLedger(tmp_path).chain
