"""Token shards hold the corpus exactly, and the held-out split leaks nothing."""

from hashlib import sha512

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import ConfigError, DataError
from model.data import shards
from model.data.config import HELD_OUT, TRAIN, SplitConfig
from model.data.loader import TokenData
from model.data.shards import check_shards, share_of, split_documents, write_shards
from model.run_log import RunLog


class ByteTokenizer:
    """A token a byte, and a separator."""

    vocab_size, eos_id = 257, 256

    def encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]


def corpus(folder, documents: int = 60, hosts: int = 30, name: str = "c"):
    """A cleaned corpus of synthetic documents of different lengths, in two files."""
    rows = [
        {
            "record_id": f"{name}-{i}",
            "crawl": name,
            "host": f"host{i % hosts}.example",
            "text": f"{name} page {i}: "
            + "é" * (i % 7)
            + sha512(f"{name} {i}".encode()).hexdigest()[: i * 37 % 101],
        }
        for i in range(documents)
    ]
    (folder / name / "documents").mkdir(parents=True)
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(rows[part::2]), folder / name / "documents" / f"{part}.parquet")
    return folder / name, rows


def write(corpora, out, **split):
    return write_shards(corpora, ByteTokenizer(), out, SplitConfig(**split), RunLog(enabled=False))


def test_every_document_lies_where_the_index_says(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 500)
    folder, rows = corpus(tmp_path)
    manifest = write([folder], tmp_path / "tokens")
    assert len(manifest["shards"]) > 3
    data = TokenData(tmp_path / "tokens")
    for row in rows:
        (document,) = data.find(row["record_id"])
        tokens = data.tokens(document)
        assert bytes(tokens[:-1].astype(np.uint8)).decode() == row["text"] and tokens[-1] == 256
        assert data.n_bytes[document] == len(row["text"].encode())
    assert sum(manifest["documents"].values()) == len(rows)


def test_the_same_documents_give_the_same_bytes_in_whatever_order_corpora_are_named(tmp_path):
    a, b = corpus(tmp_path, name="a")[0], corpus(tmp_path, name="b")[0]
    write([a, b], tmp_path / "ab")
    write([b, a], tmp_path / "ba")
    for file in (tmp_path / "ab").iterdir():
        assert file.read_bytes() == (tmp_path / "ba" / file.name).read_bytes()


def test_a_host_is_on_one_side_of_the_split_whatever_else_is_in_the_corpus():
    hosts = [f"h{i % 400}.example" for i in range(4000)]
    texts = np.array([share_of(f"text {i}") for i in range(4000)])
    held, by = split_documents(hosts, texts, np.full(4000, 100), SplitConfig(held_out=0.1))
    assert by == "host" and 0.05 < held.mean() < 0.2
    out = {host for host, h in zip(hosts, held, strict=True) if h}
    assert not out & {host for host, h in zip(hosts, held, strict=True) if not h}
    again, _ = split_documents(hosts[2000:], texts[2000:], np.full(2000, 100), SplitConfig(held_out=0.1))
    assert (again == held[2000:]).all()


def test_with_few_hosts_documents_are_held_out_instead_and_a_message_says_so(tmp_path, capsys):
    folder, _ = corpus(tmp_path, documents=200, hosts=3)
    split = SplitConfig(held_out=0.1, upsample={"host1.example": 5})
    manifest = write_shards([folder], ByteTokenizer(), tmp_path / "t", split, RunLog(enabled=True))
    assert manifest["split_by"] == "document" and manifest["documents"][HELD_OUT] > 3
    assert "3 hosts are too few" in capsys.readouterr().err
    index = pq.read_table(tmp_path / "t" / "index.parquet").to_pylist()
    assert {r["weight"] for r in index if r["host"] == "host1.example"} == {5}
    assert {r["split"] for r in index if r["host"] == "host1.example"} == {TRAIN}
    assert {r["weight"] for r in index if r["host"] == "host0.example"} == {1}


def test_a_document_has_the_weight_of_its_host_else_its_crawl_and_the_split_is_unchanged(tmp_path, capsys):
    corpora = [corpus(tmp_path, documents=600, hosts=200, name=name)[0] for name in ("old", "new")]
    write(corpora, tmp_path / "plain", held_out=0.1)
    weights = {"new": 0.25, "host1.example": 2, "nowhere.example": 3}
    split = SplitConfig(held_out=0.1, weights=weights, upsample={"host2.example": 5})
    manifest = write_shards(corpora, ByteTokenizer(), tmp_path / "t", split, RunLog(enabled=True))
    assert "no document is from nowhere.example" in capsys.readouterr().err
    assert manifest["split_by"] == "host"
    rows, plain = (pq.read_table(tmp_path / t / "index.parquet").to_pylist() for t in ("t", "plain"))
    for row, other in zip(rows, plain, strict=True):
        of_host = {"host1.example": 2, "host2.example": 5}.get(row["host"])
        assert row["weight"] == (of_host or (0.25 if row["crawl"] == "new" else 1))
        assert other["weight"] == 1
        if row["host"] != "host2.example":  # upsampled: never held out
            assert row["split"] == other["split"]


def test_a_host_of_several_crawls_is_on_one_side(tmp_path):
    corpora = [corpus(tmp_path, documents=600, hosts=200, name=name)[0] for name in ("old", "new")]
    write(corpora, tmp_path / "t", held_out=0.1, weights={"new": 3})
    index = pq.read_table(tmp_path / "t" / "index.parquet").to_pylist()
    sides: dict[str, set] = {}
    for row in index:
        sides.setdefault(row["host"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values()) and {HELD_OUT} in sides.values()


def test_held_out_pages_that_training_repeats_are_neither_trained_on_nor_measured(tmp_path):
    """Agency stories: the same text on many hosts, each with a different beginning; deduplication keeps them."""
    draw = np.random.default_rng(0)
    words = [f"word{i}" for i in range(5000)]

    def text(n: int) -> str:
        return " ".join(draw.choice(words, n))

    stories = [text(60) for _ in range(60)]
    rows = [
        {
            "record_id": f"{host}-{i}",
            "crawl": "c",
            "host": f"host{host}.example",
            "text": text(80) if i else f"{text(20)} {stories[host % 60]}",
        }
        for host in range(240)
        for i in range(3)
    ]
    (tmp_path / "c" / "documents").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c" / "documents" / "0.parquet")
    manifest = write([tmp_path / "c"], tmp_path / "t", held_out=0.1)
    assert manifest["split_by"] == "host"
    index = pq.read_table(tmp_path / "t" / "index.parquet").to_pylist()
    trained = " ".join(row["text"] for row, i in zip(rows, index, strict=True) if i["split"] == TRAIN)
    held = {row["host"] for row in index if row["split"] != TRAIN}
    for row, i in zip(rows, index, strict=True):
        story = " ".join(row["text"].split()[-60:]) in trained
        assert i["split"] == ((shards.NEAR_COPY if story else HELD_OUT) if row["host"] in held else TRAIN)
    assert manifest["documents"][shards.NEAR_COPY] > 5 and manifest["documents"][HELD_OUT] > 20
    data = TokenData(tmp_path / "t")
    copies = {n for n, i in enumerate(index) if i["split"] == shards.NEAR_COPY}
    assert not copies & {*data.documents(TRAIN).tolist(), *data.documents(HELD_OUT).tolist()}


def test_records_and_documents_find_each_other_across_row_groups(tmp_path, monkeypatch):
    write_table = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda *a, **k: write_table(*a, **k, row_group_size=7))
    write([corpus(tmp_path, name=name)[0] for name in "ab"], tmp_path / "t")
    data = TokenData(tmp_path / "t")
    ids = pq.read_table(tmp_path / "t" / "index.parquet")["record_id"].to_pylist()
    assert pq.ParquetFile(tmp_path / "t" / "index.parquet").num_row_groups > 10
    asked = np.array([100, 3, 3, 119, 0, 50])
    assert data.records(asked) == [ids[i] for i in asked]
    assert all(data.find(ids[i]) == [i] for i in asked) and data.find("elsewhere") == []
    decoder = type("Decoder", (), {"decode": staticmethod(lambda ids: bytes(ids).decode())})
    assert [record_id for record_id, _ in data.texts(decoder)] == ids


def test_a_changed_byte_in_a_shard_is_found_by_name(tmp_path):
    write([corpus(tmp_path)[0]], tmp_path / "t")
    check_shards(tmp_path / "t")
    shard = tmp_path / "t" / "shard-00000.bin"
    shard.write_bytes(b"\x01" + shard.read_bytes()[1:])
    with pytest.raises(DataError, match="shard-00000"):
        check_shards(tmp_path / "t")


def test_wrong_inputs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a whole number of times"):
        SplitConfig(upsample={"a.example": 0})
    for weight in (-1, float("inf"), float("nan"), "2"):
        with pytest.raises(ConfigError, match="weights: a"):
            SplitConfig(weights={"a.example": weight})
    with pytest.raises(ConfigError, match="both upsample and weights"):
        SplitConfig(upsample={"a.example": 2}, weights={"a.example": 2})
    with pytest.raises(ConfigError, match="not a cleaned corpus"):
        write([tmp_path], tmp_path / "t")
    empty, _ = corpus(tmp_path, documents=0, name="empty")
    for file in (empty / "documents").iterdir():
        pq.write_table(pa.table({c: pa.array([], pa.string()) for c in shards.COLUMNS}), file)
    with pytest.raises(DataError, match="no documents to train on"):
        write([empty], tmp_path / "t")
