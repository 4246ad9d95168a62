"""`stemma audit`: one changed byte anywhere in the family is named, and so is each ledger that disagrees."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import dagster as dg
import pytest
from rich.console import Console
from tiny_project import DVC, build_chain, make, sh

from core.errors import WorkspaceError
from core.hashing import file_md5, file_sha256
from lineage.audit import audit
from lineage.printing import family_tree, print_tree
from lineage.provenance import write_statement
from lineage.statement import statement_path
from lineage.sync import sync
from resources.dvc_hashes import path_md5
from resources.dvc_ledger import DvcLedger
from resources.git import git_state
from resources.workspace import Workspace


def make_all(root: Path) -> DvcLedger:
    """Build every stage and write its statement, as an asset does."""
    ledger = DvcLedger(root)
    for name in ledger.chain.in_order():
        version = make(root, name)
        upstream = {u: ledger.recorded(u) for u in ledger.chain.upstream(name)}
        mlflow_run = f"run-of-{name}" if name == "base_model" else None
        write_statement(root, name, version, upstream, "dagster-run", mlflow_run, 1.7e9, 1.7e9 + 3)
    return ledger


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The small project, built once; each test takes its own copy."""
    saved = {n: os.environ.pop(n) for n in ("DVC_STAGE", "DVC_ROOT", "DAGSTER_HOME") if n in os.environ}
    root = build_chain(tmp_path_factory.mktemp("finished") / "project")
    sh(root, DVC, "config", "cache.type", "copy")  # so that a copy of the tree has its own cache
    make_all(root)
    os.environ.update(saved)
    return root


@pytest.fixture
def ledger(finished, tmp_path, monkeypatch) -> DvcLedger:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    return DvcLedger(tmp_path / "copy")


def flip(path: Path) -> None:
    """Change one byte; size, mode and mtime stay, so that only reading the bytes can detect it."""
    stat = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    path.chmod(stat.st_mode & 0o777)


def printed(report) -> str:
    text = io.StringIO()
    print_tree(report, Console(file=text, width=200, color_system=None))
    return text.getvalue()


def test_an_untouched_family_agrees_and_prints_as_a_tree(ledger):
    report = audit(ledger.root, "base_model")
    assert report.agrees and list(report.nodes) == ledger.chain.in_order()
    assert report.files == sum(1 for p in (ledger.root / "data").rglob("*") if p.is_file())
    text = printed(report)
    depth = {line.split("data")[0].strip("│├└─ ").split(" ")[0]: line for line in text.splitlines()}
    assert text.splitlines()[0].startswith(f"base_model {ledger.recorded('base_model')[:12]}")
    assert depth["raw_crawl@sample"].index("raw_crawl") > depth["cleaned_corpus@sample"].index("cleaned")
    assert "All agree: files, dvc.lock, provenance" in text
    assert json.loads(report.to_json())["agrees"] is True


FILES = [
    "data/raw_crawl/sample/00000.warc",
    "data/raw_crawl/sample/manifest.jsonl",
    "data/cleaned_corpus/sample/deep/digest.txt",
    "data/tokenizer/made.txt",
    "data/base_model/deep/digest.txt",
]


@pytest.mark.parametrize("file", FILES)
def test_one_changed_byte_in_any_upstream_file_is_named_and_can_be_restored(ledger, file):
    sh(ledger.root, DVC, "status")  # DVC's cache of hashes is warm and would report the file as unchanged
    flip(ledger.root / file)
    report = audit(ledger.root, "base_model")
    assert [wrong.where for wrong in report.disagreements] == [file], "it, and nothing else"
    wrong = report.disagreements[0]
    assert wrong.expected.startswith("sha256 ") and wrong.found.startswith("sha256 ")
    assert wrong.expected != wrong.found
    assert wrong.fix == f"Restore it from DVC's cache: dvc checkout --force {wrong.stage}"
    assert f"disagrees {file}" in printed(report)
    (ledger.root / file).unlink()
    sh(ledger.root, *wrong.fix.split(": ")[1].replace("dvc", DVC, 1).split())
    assert audit(ledger.root, "base_model").agrees


def test_a_change_downstream_of_the_target_is_not_reported(ledger):
    flip(ledger.root / "data/base_model/made.txt")
    assert audit(ledger.root, "tokenizer").agrees
    assert not audit(ledger.root, "base_model").agrees


def test_extra_and_missing_files_are_named(ledger):
    (ledger.root / "data/tokenizer/deep/digest.txt").unlink()
    (ledger.root / "data/cleaned_corpus/sample/extra.txt").write_text("not from here")
    found = {
        wrong.where: (wrong.expected, wrong.found) for wrong in audit(ledger.root, "base_model").disagreements
    }
    assert found["data/tokenizer/deep/digest.txt"][1] == "nothing"
    assert found["data/cleaned_corpus/sample/extra.txt"][0] == "nothing"
    assert len(found) == 2


def test_a_folder_that_is_missing_or_was_never_made_is_named(ledger):
    shutil.rmtree(ledger.root / "data/tokenizer")
    wrong = audit(ledger.root, "tokenizer").disagreements
    assert [(w.where, w.found) for w in wrong] == [("data/tokenizer", "no such folder")]
    lock = (ledger.root / "dvc.lock").read_text()
    (ledger.root / "dvc.lock").write_text(lock.replace("  base_model:", "  another:"))
    wrong = audit(ledger.root, "base_model").disagreements
    assert [w.where for w in wrong if w.stage == "base_model"] == ["dvc.lock"]


def test_a_byte_changed_through_a_hard_link_says_that_the_cache_is_damaged_too(chain):
    sh(chain, DVC, "config", "cache.type", "hardlink")
    make_all(chain)
    flip(chain / "data/tokenizer/made.txt")
    (wrong,) = audit(chain, "base_model").disagreements
    assert wrong.where == "data/tokenizer/made.txt"
    assert wrong.fix.endswith("no good copy either. Rebuild it: stemma materialize tokenizer --force")
    make(chain, "tokenizer")
    assert audit(chain, "base_model").agrees


def test_crawl_files_outside_the_folder_are_hashed_too(ledger):
    outside = ledger.root / "warcs" / "00001.warc"
    outside.parent.mkdir()
    outside.write_bytes(b"WARC/1.0 from afar")
    manifest = ledger.root / "data/raw_crawl/sample/manifest.jsonl"
    line = json.loads(manifest.read_text())
    more = {**line, "file": "warcs/00001.warc", "local": False, "sha256": file_sha256(outside)}
    far = {**more, "file": "s3://crawl/00002.warc"}
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in (line, more, far)))
    version = ledger.commit("raw_crawl@sample")
    write_statement(ledger.root, "raw_crawl@sample", version, {})
    report = audit(ledger.root, "raw_crawl")
    assert report.agrees and report.nodes["raw_crawl@sample"].warc_files == 1
    assert [note for note in report.notes if "s3://crawl/00002.warc is remote" in note]
    flip(outside)
    assert [wrong.where for wrong in audit(ledger.root, "raw_crawl").disagreements] == ["warcs/00001.warc"]
    outside.unlink()
    assert audit(ledger.root, "raw_crawl").disagreements[0].found == "nothing"


def test_a_forged_lock_or_statement_is_named(ledger):
    lock = ledger.root / "dvc.lock"
    good, version = lock.read_text(), ledger.recorded("tokenizer")
    other = "0" * 32 + ".dir"
    lock.write_text(good.replace(version, other))
    found = {wrong.where for wrong in audit(ledger.root, "base_model").disagreements}
    assert {f"provenance/tokenizer/{other}.json", "data/tokenizer"} <= found
    lock.write_text(good)
    path = statement_path(ledger.root, "base_model", ledger.recorded("base_model"))
    path.write_text(path.read_text().replace(version, other))
    (wrong,) = audit(ledger.root, "base_model").disagreements
    assert wrong.where == "provenance of base_model: tokenizer" and other in wrong.found
    path.unlink()
    (wrong,) = audit(ledger.root, "base_model").disagreements
    assert wrong.where == str(path.relative_to(ledger.root)) and "no provenance statement" in wrong.found


def test_a_model_of_another_corpus_than_the_one_on_disk_is_named(ledger):
    Workspace(ledger.root).set_crawl("sample", {"source": "sample", "pages": 9})
    for name in ("raw_crawl@sample", "cleaned_corpus@sample"):
        upstream = {u: ledger.recorded(u) for u in ledger.chain.upstream(name)}
        write_statement(ledger.root, name, make(ledger.root, name), upstream)
    report = audit(ledger.root, "base_model")
    assert {wrong.where for wrong in report.disagreements} == {
        "dvc.lock: data/cleaned_corpus as read by tokenizer",
        "dvc.lock: data/cleaned_corpus as read by base_model",
    }


def test_changed_code_and_parameters_are_notes_because_the_version_is_intact(ledger):
    with open(ledger.root / "code/train.py", "a") as file:
        file.write("# other\n")
    params = (ledger.root / "params.yaml").read_text()
    (ledger.root / "params.yaml").write_text(params.replace("depth: 2", "depth: 3"))
    report = audit(ledger.root, "base_model")
    assert report.agrees
    assert "code/train.py has changed since tokenizer was made." in report.notes
    assert "base_model in params.yaml has changed since base_model was made." in report.notes


def test_an_undeclared_folder_beside_the_corpus_is_named(ledger):
    (ledger.root / "data/cleaned_corpus/old").mkdir()
    (ledger.root / "data/cleaned_corpus/old/a.txt").write_text("x")
    (wrong,) = audit(ledger.root, "base_model").disagreements
    assert wrong.where == "data/cleaned_corpus/old" and "stemma retire old" in wrong.fix


def test_dagsters_log_is_compared_where_there_is_one(ledger, monkeypatch):
    assert "Dagster" not in audit(ledger.root, "base_model").compared
    with dg.DagsterInstance.ephemeral() as instance:
        wrong = audit(ledger.root, "base_model", instance=instance).disagreements
        assert [w.where for w in wrong] == [f"Dagster: {name}" for name in ledger.chain.in_order()]
        sync(ledger.root, instance)
        report = audit(ledger.root, "base_model", instance=instance)
        assert report.agrees and "Dagster" in report.compared
        event = dg.AssetMaterialization("tokenizer", tags={"dagster/data_version": "of-yesterday"})
        instance.report_runless_asset_event(event)
        (wrong,) = audit(ledger.root, "base_model", instance=instance).disagreements
        assert (wrong.where, wrong.found) == ("Dagster: tokenizer", "of-yesterday")
        assert wrong.fix == "Report the versions on disk to Dagster: stemma sync"


def test_mlflows_runs_are_compared(ledger):
    version = ledger.recorded("base_model")
    datasets = {name: ledger.recorded(name) for name in ledger.chain.upstream("base_model")}
    run = {"run_id": "1", "role": "made", "datasets": datasets}

    def ask(*runs):
        return audit(ledger.root, "base_model", find_runs=lambda v: list(runs) if v == version else [])

    assert ask(run).agrees and "MLflow" in ask(run).compared
    assert [w.where for w in ask().disagreements] == ["MLflow: base_model"]
    assert [w.where for w in ask({**run, "role": "used"}).disagreements] == ["MLflow: base_model"]
    other = {**run, "datasets": {**datasets, "tokenizer": "of-yesterday"}}
    assert [w.where for w in ask(other).disagreements] == ["MLflow: datasets of base_model"]
    assert ask(other, run).agrees

    def away(version):
        raise ConnectionError("the server is down")

    report = audit(ledger.root, "base_model", find_runs=away)
    assert report.agrees and any("the server is down" in note for note in report.notes)


def test_the_family_tree_prints_without_hashing_and_before_all_is_made(ledger, chain):
    def text(tree) -> str:
        out = io.StringIO()
        Console(file=out, width=200, color_system=None).print(tree)
        return out.getvalue()

    flip(ledger.root / "data/base_model/made.txt")
    tree = text(family_tree(ledger.root, "base_model"))
    assert all(ledger.recorded(name)[:12] in tree for name in ledger.chain.in_order())
    assert git_state(ledger.root).commit[:8] in tree and "2023-11-14 22:13:23 UTC" in tree
    assert text(family_tree(chain, "base_model")).count("not made yet") == 5  # the shared corpus shows twice
    with pytest.raises(WorkspaceError, match=r"There is no asset 'basemodel'\. There are: raw_crawl"):
        family_tree(chain, "basemodel")


@pytest.mark.parametrize("damaged", ['{"predicate', "[]", '{"predicate": {"runDetails": {}}}'])
def test_the_family_tree_marks_a_version_whose_statement_is_damaged(ledger, damaged):
    statement_path(ledger.root, "tokenizer", ledger.recorded("tokenizer")).write_text(damaged)
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(family_tree(ledger.root, "tokenizer"))
    first, *rest = out.getvalue().splitlines()
    assert "no provenance" in first and "no provenance" not in "".join(rest)


def test_a_statement_without_subjects_is_marked_too(ledger):
    path = statement_path(ledger.root, "tokenizer", ledger.recorded("tokenizer"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "subject": None}))
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(family_tree(ledger.root, "tokenizer"))
    assert "no provenance" in out.getvalue().splitlines()[0]


def test_the_folder_hash_of_the_audit_is_dvcs(ledger):
    for name in ledger.chain.in_order():
        assert path_md5(ledger.root / ledger.chain.stage(name).out) == ledger.hash_out(name)
    listing = ledger.lock.cached_listing(ledger.recorded("tokenizer"))
    assert listing == {
        n: file_md5(ledger.root / "data/tokenizer" / n) for n in ("made.txt", "deep/digest.txt")
    }
