"""Pages that hang or crash the parser or exhaust memory: each is one failed row, and changes nothing else."""

import gzip
import os
import zlib
from pathlib import Path

import engine_units
import fake_slurm
import pytest

from corpus import clean
from corpus.clean import CleanConfig, clean_crawl
from corpus.engines.pool import LocalEngine
from corpus.engines.slurm import SlurmEngine
from corpus.http import BadBody, parse_response
from corpus.ledger import read_ledger
from corpus.warc import BrokenRecord, Record, read_records
from corpus.warc_writer import WarcWriter

SENTENCE = "The old mill stands at the bend of the river, and the road from the village meets it there."
CONFIG = CleanConfig(languages=(), page_cpu_seconds=1, page_memory_mb=200)


def prose(number: int) -> bytes:
    return f"<h1>Page {number}</h1><p>{SENTENCE} Number {number} is written on its door.</p>".encode()


def write_pages(path: Path, pages: dict[str, bytes]) -> list[tuple[str, Path]]:
    with WarcWriter(path) as writer:
        for name, page in pages.items():
            block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page
            writer.write("response", name, "2026-01-01T00:00:00Z", block, url=f"http://a.example/{name}")
    return [(path.name, path)]


def rows_by_id(folder: Path) -> dict[str, dict]:
    """The ledger's rows, their place in the file aside."""
    rows = [row for row in read_ledger(folder).to_pylist() if not row.pop("warc_length") < 0]
    return {row["record_id"]: {**row, "warc_offset": 0, "warc_file": ""} for row in rows}


def check_bad_pages(bad: dict[str, tuple[bytes, str]], engine, folder: Path) -> None:
    """Bad pages among good ones: each fails by its rule, and all other rows are as without them."""
    good = {f"good{number}": prose(number) for number in range(len(bad) + 1)}
    mixed = {}
    for number, (name, page) in enumerate(good.items()):
        mixed[name] = page
        if number < len(bad):
            mixed[list(bad)[number]] = list(bad.values())[number][0] + prose(100 + number)
    for name, pages in (("good", good), ("mixed", mixed)):
        files = write_pages(folder / f"{name}.warc.gz", pages)
        clean_crawl(files, folder / name, folder / "work", CONFIG, engine=engine)
    found = rows_by_id(folder / "mixed")
    ends = {name: found.pop(name) for name in bad}
    assert {name: (row["outcome"], row["rule"]) for name, row in ends.items()} == {
        name: ("failed", rule) for name, (_, rule) in bad.items()
    }
    assert found == rows_by_id(folder / "good")


def test_pages_that_exceed_a_limit_are_one_failed_row_each(tmp_path):
    """What these pages cost without limits: docs/engines.md."""
    attributes = b" ".join(b"a%d=1" % n for n in range(200_000))
    bad = {
        "nested": (b"<div>" * 80_000, "cpu_time"),  # quadratic
        "attributes": (b"<div " + attributes + b">", "cpu_time"),  # quadratic
        "links": (b"<p>" + b"<a href=x>y " * 600_000, "memory"),  # 70 bytes of memory for one of the page
        "bold": (b"<b>" * 2_000_000, "memory"),
    }
    check_bad_pages(bad, LocalEngine(workers=1), tmp_path)


FATAL = {
    "segfault": (b"FATAL 11", "parser_crash"),
    "abort": (b"FATAL 6", "memory"),  # how C++ and Rust end when an allocation fails
    "kernel": (b"FATAL 9", "memory"),  # how the kernel ends a process when memory is short; retried once
}
MORE_FATAL = {
    "time": (b"FATAL 24", "cpu_time"),
    "terminated": (b"FATAL 15", "parser_crash"),  # as a person would; retried once
    "another": (b"FATAL 11 once more", "parser_crash"),
    "last": (b"FATAL 11 and again", "parser_crash"),
}


@pytest.mark.parametrize(
    "name", ["slurm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("local", "ray"))]
)
def test_pages_that_kill_the_process_are_one_failed_row_each_on_every_engine(name, tmp_path, monkeypatch):
    """More of them than a task may lose workers: these deaths are explained."""
    if name == "ray":
        pytest.importorskip("ray")
        from corpus.engines.ray_engine import RayEngine

        engine = RayEngine(workers=1)
    elif name == "slurm":
        commands = fake_slurm.install(tmp_path / "bin")
        monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "slurm"))
        monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
        (tmp_path / "slurm").mkdir()
        engine = SlurmEngine(tmp_path / "jobs", poll=0.1)
    else:
        engine = LocalEngine(workers=1)
    monkeypatch.setattr(clean, "clean_unit", engine_units.fatal_pages)
    check_bad_pages(FATAL if name == "slurm" else FATAL | MORE_FATAL, engine, tmp_path)


def member(body: bytes, length: int | None = None) -> bytes:
    """The head of a WARC record, and a body that may be longer or shorter than it says."""
    head = (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:test:bomb>\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
        b"WARC-Target-URI: http://a.example/bomb\r\nContent-Type: application/http; msgtype=response\r\n"
        b"Content-Length: %d\r\n\r\n"
    )
    return head % (len(body) if length is None else length) + body


def bomb(start: bytes, filler: bytes, size: int) -> bytes:
    """A gzip member of `start` and `size` bytes of filler."""
    packer, block = zlib.compressobj(9, zlib.DEFLATED, 31), filler * ((1 << 20) // len(filler))
    parts = [packer.compress(start), *(packer.compress(block) for _ in range(size // len(block)))]
    return b"".join([*parts, packer.flush()])


BOMBS = {
    "a record that says its size": (member(b"", length=1 << 31), b"0", "too_large"),
    "bytes behind a small record": (member(b"HTTP/1.1 200 OK\r\n\r\n<p>x"), b"0", "compression_bomb"),
    "line ends before a record": (b"", b"\r\n", "compression_bomb"),
    "a header without an end": (b"WARC/1.0\r\n", b"X-Filler: 1\r\n", "bad_length"),
    "lines without an end": (b"WARC/1.0\r\nWARC-Type: response\r\n", b"0", "bad_length"),
    "no record at all": (b"GIF89a", b"0", "compression_bomb"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_gzip_bomb_in_an_archive_is_one_broken_record(what, tmp_path, monkeypatch):
    monkeypatch.setattr("corpus.stream.BOMB_BYTES", 8 << 20)
    start, filler, rule = BOMBS[what]
    files = write_pages(tmp_path / "a.warc.gz", {"before": prose(1), "after": prose(2)})
    whole = files[0][1].read_bytes()
    second = whole.rindex(b"\x1f\x8b\x08")
    bad = tmp_path / "b.warc.gz"
    bad.write_bytes(whole[:second] + bomb(start, filler, size=16 << 20) + whole[second:])
    assert bad.stat().st_size < 200_000
    records = list(read_records(bad, bad.name))
    kinds = [type(record) for record in records]
    assert kinds == [Record, BrokenRecord, Record], [getattr(r, "rule", r.record_id) for r in records]
    assert records[1].rule == rule
    assert [records[0].payload, records[2].payload] == [prose(1), prose(2)]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "br"])
def test_a_bomb_in_the_content_encoding_is_cut_at_the_limit(coding):
    plain, limit = b"0" * (32 << 20), 1 << 20
    if coding == "zstd":
        import zstandard

        body = zstandard.compress(plain)
    elif coding == "br":
        body = pytest.importorskip("brotli").compress(plain)
    else:
        body = gzip.compress(plain) if coding == "gzip" else zlib.compress(plain)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\n\r\n".encode()
    with pytest.raises(BadBody) as refused:
        parse_response(head + body, limit)
    assert refused.value.rule == "too_large"


def test_codings_on_codings_and_a_million_members_end_soon():
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\n\r\n"
    with pytest.raises(BadBody, match="claims 1,000 content codings"):
        parse_response(head % b", ".join([b"gzip"] * 1000) + gzip.compress(b"x"), 1 << 20)
    small = gzip.compress(b"x", mtime=0)
    assert parse_response(head % b"gzip" + small * 200_000, 1 << 20).body == b"x" * 200_000


def test_text_behind_many_comments_is_matched_in_linear_time(tmp_path):
    """The pattern that detects HTML once took 2^n steps for n comments."""
    block = b"HTTP/1.1 200 OK\r\n\r\n" + b"<!---->" * 140 + b"x"
    path = tmp_path / "a.warc.gz"
    with WarcWriter(path) as writer:
        writer.write("response", "urn:test:1", "2026-01-01T00:00:00Z", block, url="http://a.example/")
    assert [record.kind for record in read_records(path, path.name)] == ["other"]
