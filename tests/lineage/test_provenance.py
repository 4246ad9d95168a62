"""Provenance statements: valid according to the standard's own package, and correct for every file."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from tiny_project import make

from core.hashing import file_sha256
from lineage.provenance import write_statement
from lineage.statement import (
    StatementError,
    read_statement,
    run_facts,
    statement_path,
    subjects,
    upstream_versions,
    verify_statement,
    warc_digests,
)
from resources.dvc_ledger import DvcLedger
from resources.git import git_state


@pytest.fixture
def made(chain):
    """The small project, built, with a statement for each version."""
    ledger = DvcLedger(chain)
    for name in ledger.chain.in_order():
        version = make(chain, name)
        write_statement(
            chain,
            stage=ledger.chain.stage(name),
            version=version,
            upstream={u: ledger.recorded(u) for u in ledger.chain.upstream(name)},
            dagster_run="run-1",
            mlflow_run=None,
            started=1_700_000_000.0,
            finished=1_700_000_012.5,
        )
    return ledger


def statement_of(ledger, name):
    return read_statement(ledger.root, name, ledger.recorded(name))


def test_statement_is_valid_in_toto_and_slsa_by_their_own_package(made):
    from google.protobuf.json_format import Parse, ParseDict
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2

    for name in made.chain.in_order():
        text = statement_path(made.root, name, made.recorded(name)).read_text()
        message = Parse(text, statement_pb2.Statement())
        assert message.type == "https://in-toto.io/Statement/v1"
        assert message.predicate_type == "https://slsa.dev/provenance/v1"
        predicate = ParseDict(json.loads(text)["predicate"], provenance_pb2.Provenance())
        assert predicate.run_details.metadata.started_on.ToSeconds() == 1_700_000_000
        assert predicate.build_definition.external_parameters["stage"] == name
        assert str(made.root) not in text and os.uname().nodename not in text


def test_a_fetched_file_names_where_it_was_fetched_from(made):
    manifest = made.root / "data/raw_crawl/sample/manifest.jsonl"
    (line,) = map(json.loads, manifest.read_text().splitlines())
    manifest.write_text(json.dumps({**line, "origin": "https://crawl.example/00001.warc.gz"}) + "\n")
    version = made.commit("raw_crawl@sample")
    write_statement(made.root, "raw_crawl@sample", version, {})
    found = statement_of(made, "raw_crawl@sample")["predicate"]["buildDefinition"]["resolvedDependencies"]
    (file,) = [each for each in found if each["annotations"]["role"] == "crawl file"]
    assert file["downloadLocation"] == "https://crawl.example/00001.warc.gz"


def test_subjects_are_every_file_of_the_version_by_sha256(made):
    folder = made.root / "data/raw_crawl/sample"
    files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    expected = {n: hashlib.sha256(f.read_bytes()).hexdigest() for n, f in files.items()}
    statement = statement_of(made, "raw_crawl@sample")
    assert subjects(statement) == expected and "deep/digest.txt" in expected
    assert verify_statement(statement, expected) == []
    changed = {**expected, "made.txt": "0" * 64, "new.txt": "1" * 64}
    del changed["deep/digest.txt"]
    assert [row[0] for row in verify_statement(statement, changed)] == [
        "deep/digest.txt",
        "made.txt",
        "new.txt",
    ]


def test_dependencies_name_upstream_versions_warcs_commit_code_and_environment(made):
    base = statement_of(made, "base_model")
    assert upstream_versions(base) == {n: made.recorded(n) for n in ("cleaned_corpus@sample", "tokenizer")}
    by_name = {d["name"]: d for d in base["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert by_name["source"]["digest"]["gitCommit"] == git_state(made.root).commit
    assert by_name["source"]["annotations"]["dirty"] is False
    assert by_name["code/train.py"]["digest"]["sha256"] == file_sha256(made.root / "code/train.py")
    assert by_name["constraints.txt"]["digest"]["sha256"] == file_sha256(made.root / "constraints.txt")
    warc = made.root / "data/raw_crawl/sample/00000.warc"
    assert warc_digests(statement_of(made, "raw_crawl@sample")) == {"00000.warc": file_sha256(warc)}
    parameters = base["predicate"]["buildDefinition"]["externalParameters"]["params"]
    assert parameters == {"base_model": {"depth": 2, "lr": 1e-3}}


def test_run_facts_hold_the_run_its_times_and_its_machine(made):
    facts = run_facts(statement_of(made, "tokenizer"))
    assert facts["dagster_run"] == "run-1" and "mlflow_run" not in facts
    assert facts["started"] == "2023-11-14T22:13:20Z" and facts["finished"] == "2023-11-14T22:13:32Z"
    assert facts["hardware"]["cores"] == os.cpu_count() and facts["cpu_seconds"] > 0


def test_a_dirty_checkout_is_recorded_with_its_files(made):
    (made.root / "code/train.py").write_text("changed\n")
    (made.root / "dvc.lock").touch()
    version = made.recorded("tokenizer")
    write_statement(made.root, "tokenizer", version, upstream={})
    found = statement_of(made, "tokenizer")["predicate"]["buildDefinition"]["resolvedDependencies"]
    source = next(d for d in found if d["name"] == "source")
    assert source["annotations"]["dirty"] is True
    assert source["annotations"]["dirty_files"] == ["code/train.py"]


def test_a_missing_damaged_or_misplaced_statement_is_refused(made):
    version = made.recorded("tokenizer")
    path = statement_path(made.root, "tokenizer", version)
    good = json.loads(path.read_text())
    with pytest.raises(StatementError, match="there is no provenance statement"):
        read_statement(made.root, "tokenizer", "0" * 32 + ".dir")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(StatementError, match="not JSON"):
        read_statement(made.root, "tokenizer", version)
    for spoil in ({"subject": []}, {"predicateType": "other"}, {"predicate": {}}, {"surprise": 1}):
        path.write_text(json.dumps({**good, **spoil}))
        with pytest.raises(StatementError, match="not a valid in-toto statement"):
            read_statement(made.root, "tokenizer", version)
    path.write_text(json.dumps(statement_of(made, "base_model")))
    with pytest.raises(StatementError, match="describes version"):
        read_statement(made.root, "tokenizer", version)
