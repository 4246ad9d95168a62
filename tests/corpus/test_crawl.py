"""A crawl's manifest: complete, the same on every machine, and `verify` detects one changed byte."""

import json
import shutil
from pathlib import Path

import pytest

from corpus.crawl import build_crawl, verify
from corpus.manifest import read_manifest
from corpus.sample_web import build
from corpus.sample_web.texts import manual_texts
from corpus.stream import hash_archive
from corpus.warc import read_records


@pytest.fixture
def offline(monkeypatch):
    """Python's manual as the sample's text: no network, and fast."""
    monkeypatch.setattr(build, "load_texts", lambda wheel=None: manual_texts())


def test_the_samples_manifest_counts_what_the_reader_finds(tmp_path, offline):
    out = tmp_path / "crawl"
    summary = build_crawl("sample", {"source": "sample", "pages": 150, "seed": 0}, out, tmp_path)
    files = read_manifest(out)
    assert (summary.files, summary.records, summary.broken) == (4, 150, 1)
    assert summary.by_type["response"] + summary.by_type["revisit"] == 150
    assert "pydoc_data.topics" in summary.source
    for file in files:
        path = file.path(tmp_path, out)
        assert file.local and file.records == len(list(read_records(path, file.name)))
        assert (file.bytes, file.sha256) == hash_archive(path)
    assert verify(out, tmp_path) == []


def test_the_manifest_is_the_same_for_the_same_inputs(tmp_path, offline):
    spec = {"source": "sample", "pages": 150, "seed": 3, "files": 2}
    for name in ("one", "two"):
        build_crawl("sample", spec, tmp_path / name, tmp_path / name)
    one, two = ((tmp_path / name / "manifest.jsonl").read_text() for name in ("one", "two"))
    assert one == two and str(tmp_path) not in one


def test_verify_names_a_file_with_one_changed_byte(tmp_path, offline):
    out = tmp_path / "crawl"
    build_crawl("sample", {"source": "sample", "pages": 150}, out, tmp_path)
    target = out / "sample-02.warc.gz"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    (sentence,) = verify(out, tmp_path)
    assert "sample-02.warc.gz" in sentence
    target.unlink()
    (sentence,) = verify(out, tmp_path)
    assert "sample-02.warc.gz: cannot be read" in sentence


def warcs(folder: Path, tmp_path: Path) -> None:
    build_crawl("sample", {"source": "sample", "pages": 150, "files": 3}, tmp_path / "made", tmp_path)
    folder.mkdir(parents=True)
    for path in (tmp_path / "made").glob("*.warc.gz"):
        shutil.copy(path, folder)


def test_existing_files_are_referenced_relative_to_the_project(tmp_path, offline):
    root = tmp_path / "project"
    root.mkdir()
    warcs(tmp_path / "elsewhere", tmp_path)
    spec = {"source": "warc", "paths": "../elsewhere/*.warc.gz"}
    summary = build_crawl("mine", spec, root / "data" / "raw_crawl" / "mine", root)
    files = read_manifest(root / "data" / "raw_crawl" / "mine")
    assert [f.file for f in files] == [f"../elsewhere/sample-{n:02}.warc.gz" for n in range(3)]
    assert not any(f.local for f in files) and summary.records == 150
    assert verify(root / "data" / "raw_crawl" / "mine", root) == []
    assert str(tmp_path) not in json.dumps([f.file for f in files])


def test_remote_files_are_read_like_local_ones(tmp_path, offline):
    warcs(tmp_path / "elsewhere", tmp_path)
    spec = {
        "source": "warc",
        "paths": [f"file://{tmp_path}/elsewhere/*-00.warc.gz", "elsewhere/*-01.warc.gz"],
    }
    build_crawl("mine", spec, tmp_path / "out", tmp_path)
    files = read_manifest(tmp_path / "out")
    assert [f.file.partition("://")[0] for f in files] == ["elsewhere/sample-01.warc.gz", "file"]
    assert len(list(read_records(files[1].path(tmp_path, tmp_path / "out"), "x"))) == files[1].records == 50


def test_every_fixture_is_in_the_manifest(tmp_path, root, shared_data):
    spec = {"source": "warc", "paths": str(shared_data / "warc-fixtures" / "*")}
    summary = build_crawl("fixtures", spec, tmp_path, root)
    assert summary.files == 24
    assert all(f.records for f in read_manifest(tmp_path))


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"source": "ftp"}, "sample, warc"),
        ({"source": "sample", "page": 3}, "unknown page"),
        ({"source": "warc"}, "needs 'paths'"),
        ({}, "None"),
    ],
)
def test_an_invalid_spec_is_an_error_that_says_why(tmp_path, spec, word):
    with pytest.raises(ValueError, match=word):
        build_crawl("x", spec, tmp_path, tmp_path)


def test_a_glob_without_matches_and_a_missing_or_damaged_manifest_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file matches"):
        build_crawl("x", {"source": "warc", "paths": "nothing/*.gz"}, tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match="not made yet"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("{]\n")
    with pytest.raises(ValueError, match="damaged"):
        read_manifest(tmp_path)
