"""Text datasets: every row is cleaned like a page, and the manifest says where it is from."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus.crawl import build_crawl, verify
from corpus.crawl_spec import parse_crawl
from corpus.manifest import read_manifest
from corpus.sources.text import TextDataset
from corpus.warc import read_records

ROWS = [
    {
        "text": f"Text number {n}, with a letter that takes two bytes: é.\nIts second line.",
        "url": f"https://a.example/{n}",
        "id": f"<urn:uuid:00000000-0000-4000-8000-{n:012}>",
        "date": f"2024-02-0{n + 1}T01:02:03Z",
    }
    for n in range(5)
]


def jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(tmp_path, out="crawl", **settings):
    return build_crawl("fw", {"source": "text", **settings}, tmp_path / out, tmp_path)


def records(tmp_path, out="crawl"):
    return [
        record
        for file in read_manifest(tmp_path / out)
        for record in read_records(file.path(tmp_path, tmp_path / out), file.file)
    ]


def write_parquet(folder):
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    return "rows.parquet"


def write_jsonl(folder):
    jsonl(folder / "rows.jsonl")
    return "*.jsonl"


def write_packed(folder):
    (folder / "rows.json.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in ROWS).encode()))
    return "rows.json.gz"


def write_csv(folder):
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    return "rows.csv"


@pytest.mark.parametrize("write", [write_parquet, write_jsonl, write_packed, write_csv])
def test_every_row_becomes_a_record_in_every_format(write, tmp_path):
    summary = build(tmp_path, dataset=write(tmp_path))
    assert (summary.records, summary.broken, summary.by_type) == (5, 0, {"conversion": 5})
    for record, row in zip(records(tmp_path), ROWS, strict=True):
        assert (record.payload.decode(), record.url, record.date) == (row["text"], row["url"], row["date"])
        assert record.record_id == row["id"].strip("<>") and (record.kind, record.http_charset) == (
            "text",
            "utf-8",
        )


def test_the_same_rows_give_the_same_bytes_and_the_source_names_their_version(tmp_path):
    jsonl(tmp_path / "rows.jsonl")
    for out in ("one", "two"):
        build(tmp_path, out, dataset="rows.jsonl", rows_per_file=2)
    one, two = ((tmp_path / out / "manifest.jsonl").read_text() for out in ("one", "two"))
    assert one == two and verify(tmp_path / "one", tmp_path) == []
    files = read_manifest(tmp_path / "one")
    assert [f.records for f in files] == [2, 2, 1]
    assert "text of rows.jsonl, split train, 1 files with sha256" in files[0].source
    jsonl(tmp_path / "rows.jsonl", ROWS[::-1])
    build(tmp_path, "three", dataset="rows.jsonl", rows_per_file=2)
    assert read_manifest(tmp_path / "three")[0].source != files[0].source


def test_a_row_without_text_or_url_is_a_record_too(tmp_path):
    rows = [
        {"body": None, "when": "soon", "id": "a\ud800\nb"},
        {"body": "", "when": None},
        {"body": "Some text.", "when": "2024-02-01"},
    ]
    jsonl(tmp_path / "rows.jsonl", rows)
    build(tmp_path, dataset="rows.jsonl", text_column="body", date_column="when")
    found = records(tmp_path)
    assert [record.payload for record in found] == [b"", b"", b"Some text."]
    assert len({record.url for record in found}) == len({record.record_id for record in found}) == 3
    assert found[2].url == "http://rows-jsonl.invalid/default/train/2"
    assert [record.date[:10] for record in found] == ["1970-01-01", "1970-01-01", "2024-02-01"]


def test_a_broken_line_is_kept_and_loses_no_other_line(tmp_path):
    good = [json.dumps({"text": f"Text {n}.", "more": more}) for n, more in enumerate((1, "one", None, [1]))]
    lines = [good[0], '{"text": "cut sho', "", good[1], "[1, 2]", good[2], good[3]]
    (tmp_path / "rows.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "caf\xe9"}\n')
    summary = build(tmp_path, dataset="rows.jsonl")
    assert summary.by_type == {"conversion": 5, "resource": 2} and summary.broken == 0
    found = [(record.kind, record.payload.decode()) for record in records(tmp_path)]
    assert [text for kind, text in found if kind == "other"] == ['{"text": "cut sho', "[1, 2]"]
    assert [text for kind, text in found if kind == "text"] == [
        "Text 0.",
        "Text 1.",
        "Text 2.",
        "Text 3.",
        "caf\ufffd",
    ]


def test_a_text_dataset_is_cleaned_like_any_crawl(tmp_path, root):
    from corpus.clean import CleanConfig, clean_crawl
    from corpus.ledger import check_conservation

    text = "\n\n".join((root / "docs" / name).read_text() for name in ("how-it-works.md", "demo.md"))
    jsonl(tmp_path / "rows.jsonl", [{"text": text}, {"text": None}, {"text": "too short"}])
    build(tmp_path, dataset="rows.jsonl")
    files = [(f.file, f.path(tmp_path, tmp_path / "crawl")) for f in read_manifest(tmp_path / "crawl")]
    clean_crawl(files, tmp_path / "out", tmp_path / "units", CleanConfig(), workers=0)
    counts = check_conservation(tmp_path / "out", records=3)
    assert counts["records"] == 3 and counts["failed"] == 0 and counts["dropped"] >= 2


def test_the_limit_of_rows_is_kept(tmp_path):
    jsonl(tmp_path / "rows.jsonl")
    assert build(tmp_path, dataset="rows.jsonl", limit=3, rows_per_file=2).records == 3
    assert "first 3 rows" in read_manifest(tmp_path / "crawl")[0].source


def test_an_interrupted_build_resumes_after_the_finished_files(tmp_path, monkeypatch):
    jsonl(tmp_path / "rows.jsonl")
    spec = {"source": "text", "dataset": "rows.jsonl", "rows_per_file": 2}
    build_crawl("fw", spec, tmp_path / "whole", tmp_path)
    write, seen, stop_at = TextDataset._write, [], 3

    def interrupted(self, warc, number, *row):
        if number == stop_at:
            raise KeyboardInterrupt
        seen.append(number)
        write(self, warc, number, *row)

    monkeypatch.setattr(TextDataset, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_crawl("fw", spec, tmp_path / "crawl", tmp_path, work=tmp_path / "work")
    assert [path.name for path in (tmp_path / "work").rglob("*.gz")] == ["text-00000.warc.gz"]
    stop_at = None
    build_crawl("fw", spec, tmp_path / "crawl", tmp_path, work=tmp_path / "work")
    assert seen == [0, 1, 2, 2, 3, 4]
    whole, crawl = ((tmp_path / out / "manifest.jsonl").read_text() for out in ("whole", "crawl"))
    assert whole == crawl


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "rows.jsonl", "text_column": "body"}, "no column body; there are text, url, id, date"),
        ({"dataset": "rows.jsonl", "split": "test"}, "rows.jsonl cannot be read"),
        ({"dataset": "damaged.parquet"}, "damaged.parquet cannot be read behind row 0"),
        ({"dataset": "rows.jsonl", "limit": 0}, "limit is 0; it must be at least 1"),
        ({}, "needs 'dataset', a name on the Hugging Face hub or a glob"),
    ],
)
def test_unreadable_rows_are_errors_that_say_why(settings, words, tmp_path):
    jsonl(tmp_path / "rows.jsonl")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=words):
        build(tmp_path, **settings)


def test_a_dataset_missing_on_the_hub_is_an_error_that_says_why(tmp_path, monkeypatch):
    import huggingface_hub

    class Unreachable:
        def dataset_info(self, name, revision=None):
            raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    with pytest.raises(ValueError, match=r"does not give the dataset 'HuggingFaceFW/fineweb' .*no route"):
        build(tmp_path, dataset="HuggingFaceFW/fineweb")


def test_a_dataset_of_the_hub_is_read_at_one_commit(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    asked = []

    class Hub:
        def dataset_info(self, name, revision=None):
            return type("Info", (), {"sha": f"commit of {name} at {revision}"})

    def load_dataset(**options):
        asked.append(options)
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert build(tmp_path, dataset="a/b", config="small", revision="v1", limit=2).records == 2
    commit = "commit of a/b at v1"
    assert asked == [
        {
            "path": "a/b",
            "name": "small",
            "data_files": None,
            "revision": commit,
            "split": "train",
            "streaming": True,
        }
    ]
    assert f"text of a/b, small, split train, commit {commit}" in read_manifest(tmp_path / "crawl")[0].source


def test_the_crawl_option_describes_a_text_dataset(tmp_path):
    jsonl(tmp_path / "rows.jsonl")
    assert parse_crawl("a=text:rows.jsonl", tmp_path)[1] == {"source": "text", "dataset": "rows.jsonl"}
    assert parse_crawl("a=text:HuggingFaceFW/fineweb:sample-10BT", tmp_path)[1] == {
        "source": "text",
        "dataset": "HuggingFaceFW/fineweb",
        "config": "sample-10BT",
    }
    with pytest.raises(FileNotFoundError, match="no file matches"):
        parse_crawl("a=text:none/*.jsonl", tmp_path)
