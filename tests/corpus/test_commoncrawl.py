"""Fetching from Common Crawl: whatever the server does, the files are complete or the crawl says what is missing."""

import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from misbehaving_server import Fault, Server, in_seconds, serving

from core.files import read_json_lines
from corpus.crawl import build_crawl, not_fetched, verify
from corpus.crawl_spec import parse_crawl
from corpus.manifest import read_manifest
from corpus.sources.download import Download, fetch_all
from corpus.sources.remote import PermanentFetchError, RequestPolicy
from corpus.warc import Record, read_records
from corpus.warc_writer import WarcWriter

CRAWL = "CC-MAIN-2026-45"
LISTING = f"/crawl-data/{CRAWL}/warc.paths.gz"
PAGES, FILES = 12, 4
QUICK = {"first_wait": 0.01, "longest_wait": 0.05, "stall_seconds": 0.4, "tries": 4}


def path_of(number: int) -> str:
    return f"/crawl-data/{CRAWL}/segments/17{number % 2}/warc/CC-MAIN-20261105000000-{number:05}.warc.gz"


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, bytes]:
    """Four WARC files of 12 pages and their listing, by their paths on Common Crawl's server."""
    folder, files = tmp_path_factory.mktemp("archives"), {}
    for number in range(FILES):
        noise = random.Random(number)
        with WarcWriter(folder / f"{number}.warc.gz") as warc:
            for page in range(PAGES):
                body = f"<html><p>{noise.randbytes(2000).hex()}</p></html>".encode()
                block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
                urn, url = f"urn:uuid:{number}-{page}", f"http://{number}.example/{page}"
                warc.write("response", urn, "2026-11-05T00:00:00Z", block, url=url)
        files[path_of(number)] = (folder / f"{number}.warc.gz").read_bytes()
    lines = "".join(f"{path_of(number)[1:]}\n" for number in range(FILES))
    return {**files, LISTING: gzip.compress(lines.encode())}


@pytest.fixture
def server(archives):
    with serving(files=dict(archives)) as server:
        yield server


def build(server: Server, out: Path, **settings):
    spec = {"source": "commoncrawl", "crawl": CRAWL, "files": 2, "base": server.url, **QUICK, **settings}
    return build_crawl("cc", spec, out, out.parent, work=out.with_name("work"))


def same_bytes(out: Path, archives: dict[str, bytes], *numbers: int) -> bool:
    wanted = {Path(path_of(n)).name: archives[path_of(n)] for n in numbers}
    return {path.name: path.read_bytes() for path in out.glob("*.warc.gz")} == wanted


def test_the_files_of_a_crawl_are_fetched_and_listed_with_their_origin(server, archives, tmp_path):
    summary = build(server, tmp_path / "cc", first=1)
    assert (summary.files, summary.records, summary.broken) == (2, 2 * PAGES, 0)
    assert summary.source == f"Common Crawl {CRAWL}, 2 of 4 WARC files"
    files = read_manifest(tmp_path / "cc")
    assert [f.origin for f in files] == [server.url + path_of(1), server.url + path_of(2)]
    assert all(f.local for f in files) and same_bytes(tmp_path / "cc", archives, 1, 2)
    assert verify(tmp_path / "cc", tmp_path) == [] and not not_fetched(tmp_path / "cc")
    assert all("Stemma" in headers["user-agent"] for _, headers, _ in server.requests)


def test_the_same_seed_chooses_the_same_files(server, tmp_path):
    names = [
        [f.file for f in read_manifest(tmp_path / str(n))]
        for n, seed in enumerate((5, 5, 6))
        if build(server, tmp_path / str(n), seed=seed)
    ]
    assert names[0] == names[1] != names[2]


FAULTS = {
    "it stalls": [Fault(cut=9000, stall=1.0)],
    "it trickles": [Fault(cut=9000, trickle=0.05)],
    "it cuts the body short": [Fault(cut=20_000), Fault(cut=9_000), Fault(cut=1)],
    "it claims more bytes than it sends": [Fault(length=200_000)],
    "it claims fewer bytes than it sends": [Fault(length=5_000)],
    "it sends other bytes": [Fault(body=b"<html>busy</html>"), Fault(body=b"\x1f\x8b\x08" + bytes(50))],
    "it sends a damaged file": [Fault(body=b"damaged")],
    "it supports no ranges": [Fault(cut=20_000, no_range=True), Fault(no_range=True)],
    "it fails": [Fault(status=500), Fault(status=503), Fault(status=504)],
    "it is behind a proxy that rejects requests": [Fault(status=403), Fault(status=403), Fault(status=429)],
    "it hangs up before it answers": [Fault(status=200, length=50_000, cut=0)],
    "the file changes meanwhile": [Fault(cut=20_000, body=os.urandom(40_000), etag='"older"')],
}


@pytest.mark.parametrize("what", FAULTS)
def test_the_bytes_are_right_whatever_the_server_does(what, server, archives, tmp_path):
    path = path_of(0)
    if what == "it sends a damaged file":
        damaged = bytearray(archives[path])
        damaged[len(damaged) // 2] ^= 1
        FAULTS[what][0].body = bytes(damaged)
    server.faults[path] = list(FAULTS[what])
    build(server, tmp_path / "cc")
    assert same_bytes(tmp_path / "cc", archives, 0, 1)
    assert len(server.seen(path)) >= len(FAULTS[what]) and not server.faults[path]  # all of it has happened
    assert verify(tmp_path / "cc", tmp_path) == []


def test_only_missing_bytes_are_requested_again(server, archives, tmp_path):
    server.faults[path_of(0)] = [Fault(cut=20_000), Fault(cut=9_000)]
    build(server, tmp_path / "cc")
    asked = [headers.get("range") for headers in server.seen(path_of(0))]
    assert asked == [None, "bytes=20000-", "bytes=29000-"] and same_bytes(tmp_path / "cc", archives, 0, 1)
    assert all(h.get("if-range") == f'"{path_of(0)}"' for h in server.seen(path_of(0))[1:])


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_applies_to_all_connections(form, server, archives, tmp_path):
    asks = "1" if form == "seconds" else in_seconds(2)  # a date counts whole seconds
    server.faults[path_of(0)] = [Fault(status=503, headers={"Retry-After": asks})]
    server.faults[path_of(1)] = [Fault(status=200, cut=0, length=9, stall=0.1)]  # would ask again at once
    build(server, tmp_path / "cc")
    turned_away, again = server.times(path_of(0))
    assert again - turned_away >= 0.95 and server.times(path_of(1))[1] - turned_away >= 0.95
    assert same_bytes(tmp_path / "cc", archives, 0, 1)


def test_a_retry_after_of_hours_ends_the_fetch(server, tmp_path):
    server.faults[path_of(0)] = [Fault(status=429, headers={"Retry-After": "86400"})]
    with pytest.raises(PermanentFetchError, match="left alone for 86,400 s"):
        build(server, tmp_path / "cc")
    assert len(server.seen(path_of(0))) == 1


def test_no_more_connections_than_allowed(server, tmp_path):
    for number in range(FILES):
        server.faults[path_of(number)] = [Fault(stall=0.1)]
    build(server, tmp_path / "cc", files=4, connections=2)
    assert server.at_once == 2


def test_a_file_that_cannot_be_fetched_fails_the_crawl_or_is_listed(server, archives, tmp_path):
    del server.files[path_of(1)]
    with pytest.raises(PermanentFetchError, match=f"{path_of(1)}: the server answers 404"):
        build(server, tmp_path / "cc", files=3)
    summary = build(server, tmp_path / "cc", files=3, allow_missing=1)
    assert summary.files == 2 and same_bytes(tmp_path / "cc", archives, 0, 2)
    assert not_fetched(tmp_path / "cc") == {"status 404": 1}
    rows = read_json_lines(tmp_path / "cc" / "fetch-log.jsonl")
    assert [row["outcome"] for row in rows] == ["fetched", "status 404", "fetched"]
    assert rows[1]["url"] == server.url + path_of(1)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(status=503), "answers 503; given up after 4 tries in a row"),
        (Fault(cut=5000, no_range=True), r"IncompleteRead\(5000 .* given up after 4 tries"),
        (Fault(body=b"never gzip"), "came 3 times and does not unpack"),
    ],
)
def test_a_server_that_keeps_failing_ends_the_fetch_with_the_reason(fault, words, server, tmp_path):
    server.faults[path_of(0)], server.forever = [fault], {path_of(0)}
    with pytest.raises(PermanentFetchError, match=words):
        build(server, tmp_path / "cc", files=1)
    assert len(server.seen(path_of(0))) <= 5


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"crawl": "CC-MAIN-1999-01"}, PermanentFetchError, "no crawl 'CC-MAIN-1999-01'"),
        ({"files": 5}, ValueError, "has 4 WARC files, and 5 from number 0 on"),
        ({"kind": "wat"}, ValueError, "must be one of warc, wet"),
        ({"files": 0}, ValueError, "params.yaml, crawls.cc: files is 0; it must be at least 1"),
        ({"files": "all"}, ValueError, "files is 'all'"),
        ({"crawl": ""}, ValueError, "needs 'crawl', an id such as CC-MAIN-2026-45"),
    ],
)
def test_settings_that_cannot_be_fetched_are_errors_that_say_why(settings, error, words, server, tmp_path):
    with pytest.raises(error, match=words):
        build(server, tmp_path / "cc", **settings)


@pytest.mark.parametrize("no_range", [False, True])
def test_the_first_bytes_of_a_file_are_cut_at_a_record(no_range, server, archives, tmp_path):
    server.faults[path_of(0)] = [Fault(no_range=no_range)]
    summary = build(server, tmp_path / "cc", files=1, bytes=20_000)
    (file,) = read_manifest(tmp_path / "cc")
    data = (tmp_path / "cc" / file.file).read_bytes()
    assert 10_000 < len(data) <= 20_000 and archives[path_of(0)].startswith(data)
    records = list(read_records(file.path(tmp_path, tmp_path / "cc"), file.file))
    assert summary.broken == 0 and len(records) == summary.records == len(data) // 4300
    assert all(isinstance(record, Record) for record in records)
    assert file.origin == f"{server.url}{path_of(0)}#bytes=0-19999"
    assert server.seen(path_of(0))[0]["range"] == "bytes=0-19999"


def test_a_byte_limit_below_one_record_is_an_error(server, tmp_path):
    with pytest.raises(PermanentFetchError, match="first record is longer than the 1,000 bytes"):
        build(server, tmp_path / "cc", bytes=1000)


FETCH = """
import sys
from pathlib import Path
from corpus.crawl import build_crawl
build_crawl("cc", {spec!r}, Path(sys.argv[1]), Path(sys.argv[1]), work=Path(sys.argv[2]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_fetch_resumes_where_it_was(how, server, archives, root, tmp_path):
    spec = {"source": "commoncrawl", "crawl": CRAWL, "base": server.url, **QUICK, "stall_seconds": 60}
    server.faults[path_of(0)] = [Fault(cut=30_000, stall=20)]
    out, work = tmp_path / "cc", tmp_path / "work"
    command = [sys.executable, "-c", FETCH.format(spec=spec), str(out), str(work)]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, start_new_session=True)
    part = work / (Path(path_of(0)).name + ".part")
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size == 30_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    process.communicate(timeout=5)
    assert process.returncode != 0 and part.stat().st_size == 30_000
    assert not list(out.glob("*.warc.gz"))
    build(server, out, files=1)
    assert same_bytes(out, archives, 0)
    assert server.seen(path_of(0))[-1]["range"] == "bytes=30000-" and len(server.seen(LISTING)) == 1


def test_more_files_of_the_same_crawl_fetch_only_the_new_ones(server, archives, tmp_path):
    build(server, tmp_path / "old")
    first = tmp_path / "old" / Path(path_of(1)).name
    first.write_bytes(b"no longer what the manifest says")
    server.requests.clear()
    spec = {"source": "commoncrawl", "crawl": CRAWL, "files": 3, "base": server.url, **QUICK}
    build_crawl("cc", spec, tmp_path / "new", tmp_path, previous=tmp_path / "old")
    asked = [path for path, _, _ in server.requests]
    assert sorted(asked) == sorted([LISTING, path_of(1), path_of(2)])
    assert same_bytes(tmp_path / "new", archives, 0, 1, 2)


def test_an_object_store_is_read_through_fsspec(archives, tmp_path, monkeypatch):
    import fsspec

    store = fsspec.filesystem("memory")
    for path, data in archives.items():
        store.pipe(f"/commoncrawl{path}", data)
    spec = {"source": "commoncrawl", "crawl": CRAWL, "files": 2, "base": "memory://commoncrawl", **QUICK}
    build_crawl("cc", {**spec, "bytes": 20_000}, tmp_path / "piece", tmp_path)
    build_crawl("cc", spec, tmp_path / "cc", tmp_path)
    assert same_bytes(tmp_path / "cc", archives, 0, 1)
    assert [f.records for f in read_manifest(tmp_path / "piece")] == [4, 4]
    for error, word in (
        (OSError(errno.EBUSY, "SlowDown"), "answers 503; given up"),
        (PermissionError(), "AWS account"),
    ):
        with monkeypatch.context() as patch, pytest.raises(PermanentFetchError, match=word):
            patch.setattr(type(store), "info", lambda *args, error=error: raise_it(error))
            build_crawl("cc", spec, tmp_path / "busy", tmp_path)
    store.rm(f"/commoncrawl{path_of(1)}")
    with pytest.raises(PermanentFetchError, match="404"):
        build_crawl("cc", spec, tmp_path / "less", tmp_path)


def raise_it(error):
    raise error


def test_a_partial_file_is_resumed_only_if_it_is_of_the_same_version(server, archives, tmp_path):
    part = tmp_path / "a.gz.part"
    part.write_bytes(archives[path_of(0)][:10_000])
    for about in (None, {"url": "http://other.example/", "validator": "x", "total": 5}, "{"):
        if about:
            (tmp_path / "a.gz.part.json").write_text(about if about == "{" else json.dumps(about))
        fetch_all([Download(server.url + path_of(0), tmp_path / "a.gz")], RequestPolicy(**QUICK))
        assert (tmp_path / "a.gz").read_bytes() == archives[path_of(0)]
        assert "range" not in server.seen(path_of(0))[-1]
        part.write_bytes(b"something else")


def test_the_crawl_option_describes_a_common_crawl(tmp_path):
    assert parse_crawl("cc=commoncrawl:CC-MAIN-2026-45:10", tmp_path) == (
        "cc",
        {"source": "commoncrawl", "crawl": "CC-MAIN-2026-45", "files": 10},
    )
    (tmp_path / "a.warc.gz").touch()
    assert parse_crawl("a=*.gz", tmp_path) == ("a", {"source": "warc", "paths": "*.gz"})
    for word, says in (("cc", "NAME=GLOB"), ("cc=commoncrawl:X:ten", "FILES a number")):
        with pytest.raises(ValueError, match=says):
            parse_crawl(word, tmp_path)
    with pytest.raises(FileNotFoundError, match="no file matches"):
        parse_crawl("a=nothing/*.gz", tmp_path)


def test_a_real_file_of_common_crawl_is_read(shared_data, tmp_path):
    folder = shared_data / "common-crawl"
    data = (folder / "whirlwind.warc.gz").read_bytes()
    with serving(files={path_of(0): data, LISTING: gzip.compress(path_of(0)[1:].encode())}) as server:
        server.faults[path_of(0)] = [Fault(cut=len(data) // 2)]
        summary = build(server, tmp_path / "cc", files=1)
    assert summary.by_type == {"metadata": 1, "request": 1, "response": 1, "warcinfo": 1}
    assert summary.records == 1 and summary.broken == 0
