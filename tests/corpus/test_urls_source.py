"""Fetching a list of URLs: politely, and every URL of the list becomes a page or a row with the reason."""

import gzip
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from misbehaving_server import Fault, serving
from processes import alive

from core.files import read_json_lines
from corpus.crawl import build_crawl, not_fetched
from corpus.crawl_spec import parse_crawl
from corpus.manifest import read_manifest
from corpus.warc import Record, read_records

pytest.importorskip("scrapy", reason="the extra 'fetch' is not installed")

QUICK = {"delay": 0, "timeout": 1, "retries": 1, "allow_private": True, "user_agent": "Stemma/0.1 (a test)"}
ROBOTS = b"User-agent: *\nDisallow: /secret\n\nUser-agent: Stemma\nDisallow: /private\n"


def page(name: str) -> bytes:
    return f"<!doctype html><html><body><p>This is the page {name}.</p></body></html>".encode()


def html(body: bytes, **headers: str) -> Fault:
    return Fault(status=200, body=body, headers={"Content-Type": "text/html; charset=utf-8", **headers})


def build(tmp_path, urls, out="crawl", **settings):
    spec = {"source": "urls", "list": urls, **QUICK, **settings}
    return build_crawl("mine", spec, tmp_path / out, tmp_path, work=tmp_path / "work")


def rows_of(folder):
    return {row["url"]: row for row in read_json_lines(folder / "fetch-log.jsonl")}


def records(folder):
    found = [
        record for file in read_manifest(folder) for record in read_records(folder / file.file, file.file)
    ]
    assert all(isinstance(record, Record) for record in found)
    return found


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """One list with every case, fetched once: its folder, summary, and the servers of three hosts."""
    folder = tmp_path_factory.mktemp("urls")
    with (
        serving() as server,
        serving(host="127.0.0.2") as broken,
        serving(host="127.0.0.3") as slow,
        serving(host="127.0.0.5") as dead,
    ):
        there, closed = server.url, "http://127.0.0.4:9"
        server.files = {"/robots.txt": ROBOTS, "/a": page("a"), "/huge": bytes(3_000_000), "/old": b""}
        server.forever = {"/a", "/packed", "/old", "/loop", "/gone", "/slow", "/busy", "/out"}
        server.faults = {
            "/a": [html(page("a"))],
            "/packed": [html(gzip.compress(page("packed")), **{"Content-Encoding": "gzip"})],
            "/old": [Fault(status=301, headers={"Location": "/a"})],
            "/out": [Fault(status=302, headers={"Location": "/private/page"})],
            "/loop": [Fault(status=302, headers={"Location": "/loop"})],
            "/gone": [Fault(status=404, body=b"gone")],
            "/slow": [Fault(stall=30, cut=0, status=200, length=100)],
            "/busy": [Fault(status=500)],
            "/cut": [Fault(status=200, body=page("cut"), length=5000)] * 2,
        }
        broken.faults, broken.forever = {"/robots.txt": [Fault(status=503)]}, {"/robots.txt"}
        slow.files = {"/robots.txt": b"User-agent: *\nCrawl-delay: 3600\n", "/x": page("x")}
        names = ["a", "packed", "old", "out", "loop", "gone", "slow", "busy", "cut", "huge"]
        lines = [f"{there}/{name}" for name in [*names, "private/page", "secret/page"]]
        dead.forever = {f"/{n}" for n in range(30)}
        dead.faults = {path: [Fault(status=200, cut=0, length=9)] for path in dead.forever}
        lines += [f"{dead.url}/{n}" for n in range(30)]
        lines += [f"{broken.url}/x", f"{slow.url}/x", f"{closed}/x", "mailto:a@b.c"]
        (folder / "urls.txt").write_text("# the list\n" + "\n".join([*lines, lines[0]]) + "\n\n")
        summary = build(folder, "urls.txt", max_bytes=1_000_000, max_redirects=3)
        yield folder / "crawl", summary, server, broken, dead


def test_every_url_ends_as_a_page_or_with_a_reason(fetched):
    folder, summary, server, _, dead = fetched
    rows = rows_of(folder)
    outcomes = {url.removeprefix(server.url): row["outcome"] for url, row in rows.items()}
    here = {url: outcome for url, outcome in outcomes.items() if url.startswith("/")}
    assert here == {
        "/a": "fetched",
        "/packed": "fetched",
        "/old": "fetched",
        "/secret/page": "status 404",  # forbidden to others only: a group of rules names us
        "/private/page": "robots",
        "/out": "robots",
        "/loop": "redirects",
        "/gone": "status 404",
        "/slow": "timeout",
        "/busy": "status 500",
        "/cut": "truncated",
        "/huge": "too_large",
    }
    elsewhere = [outcome for url, outcome in outcomes.items() if not url.startswith("/")]
    assert elsewhere[30:] == ["robots_unreachable", "crawl_delay", "connection", "not_a_web_address"]
    assert set(elsewhere[:30]) == {"truncated", "unresponsive"}  # a host that answers nothing is left alone
    assert len(dead.requests) < 60
    assert (
        not_fetched(folder).total() == len(rows) - 3 and summary.source == "3 of 46 URLs of a list, fetched"
    )


def test_robots_txt_is_obeyed_also_when_many_urls_wait_for_it_and_after_a_redirect(fetched):
    _, _, server, broken, _ = fetched
    asked = [path for path, _, _ in server.requests]
    assert asked[0] == "/robots.txt" and asked.count("/robots.txt") == 1
    assert not any(path.startswith("/private") for path in asked)
    assert {path for path, _, _ in broken.requests} == {"/robots.txt"}


def test_responses_are_stored_as_they_came(fetched):
    folder, summary, server, _, _ = fetched
    found = {record.url: record for record in records(folder)}
    row = rows_of(folder)[server.url + "/old"]
    assert row["final_url"] == server.url + "/a"
    assert found[server.url + "/packed"].payload == page("packed")  # stored packed, read unpacked
    assert found[server.url + "/a"].payload == page("a") and found[server.url + "/a"].kind == "html"
    assert found[server.url + "/gone"].status == 404
    assert summary.by_type == {"request": 6, "response": 6, "warcinfo": 1} and summary.broken == 0
    asked = server.seen("/a")[0]
    assert asked["user-agent"] == "Stemma/0.1 (a test)" and "cookie" not in asked


def test_a_host_gets_one_request_at_a_time_with_a_delay(tmp_path):
    with serving() as server:
        server.files = {f"/{n}": page(str(n)) for n in range(3)}
        server.files["/robots.txt"] = b"User-agent: *\nCrawl-delay: 0.3\n"
        server.faults["/1"] = [Fault(status=429, headers={"Retry-After": "1"})]
        build(tmp_path, [f"{server.url}/{n}" for n in range(3)])
        pages = [(path, when) for path, _, when in server.requests if path != "/robots.txt"]
    assert server.at_once == 1 and sorted(path for path, _ in pages) == ["/0", "/1", "/1", "/2"]
    gaps = [later - earlier for (_, earlier), (_, later) in itertools.pairwise(pages)]
    assert min(gaps) > 0.25
    turned_away = [path for path, _ in pages].index("/1")
    assert gaps[turned_away] > 0.95
    assert {row["outcome"] for row in rows_of(tmp_path / "crawl").values()} == {"fetched"}


def test_no_url_and_no_redirect_leads_into_the_private_network(tmp_path):
    with serving(files={"/x": page("secret")}) as server:
        port = server.url.rpartition(":")[2]
        urls = [
            f"http://{host}:{port}/x"
            for host in ("127.0.0.1", "localhost", "2130706433", "[::1]", "10.0.0.1")
        ]
        with pytest.raises(ValueError, match=r"none of the 5 URLs could be fetched: private_address 5\."):
            build(tmp_path, urls, allow_private=False)
    assert server.requests == []


FETCH = """
import sys
from pathlib import Path
from corpus.crawl import build_crawl

if __name__ == "__main__":
    out = Path(sys.argv[1])
    build_crawl("mine", {spec!r}, out, out, work=out.with_name("work"))
"""


def test_a_killed_fetch_resumes_after_the_pages_that_it_has(tmp_path, root):
    with serving() as server:
        server.files = {f"/{n}": page(str(n)) for n in range(4)}
        urls = [f"{server.url}/{n}" for n in range(4)]
        spec = {"source": "urls", "list": urls, **QUICK, "timeout": 60}
        server.faults["/2"] = [Fault(stall=30, cut=0)]
        (tmp_path / "fetch.py").write_text(FETCH.format(spec=spec))
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "fetch.py"), str(tmp_path / "crawl")],
            env={**os.environ, "PYTHONPATH": str(root)},
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 40
        while not server.seen("/2") and time.monotonic() < deadline:
            time.sleep(0.05)
        fetchers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert fetchers and wait_until_dead(fetchers)
        done = {
            row["url"].removeprefix(server.url)
            for row in read_json_lines(tmp_path / "work" / "segment.jsonl")
        }
        with (tmp_path / "work" / "segment.jsonl").open("ab") as log:
            log.write(b'{"url": "half a li')
        with (tmp_path / "work" / "segment.warc.gz").open("ab") as segment:
            segment.write(b"half a page")
        before = len(server.requests)
        summary = build(tmp_path, urls)
        assert summary.by_type["response"] == 4 and summary.broken == 0
        again = {path for path, _, _ in server.requests[before:]}
    assert done and again == {"/robots.txt", "/0", "/1", "/2", "/3"} - done
    assert sorted(record.payload for record in records(tmp_path / "crawl")) == [
        page(str(n)) for n in range(4)
    ]


def children(pid):
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def wait_until_dead(pids):
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def test_a_longer_list_fetches_only_new_pages_and_another_edition_all(tmp_path):
    with serving() as server:
        server.files = {f"/{n}": page(str(n)) for n in range(4)}
        urls = [f"{server.url}/{n}" for n in range(4)]
        spec = {"source": "urls", **QUICK}
        build_crawl("mine", {**spec, "list": urls[:2]}, tmp_path / "old", tmp_path)
        seen = len(server.requests)
        new = {**spec, "list": [*urls[::-1]], "max_pages": 3}  # 3, 2, 1; not 0
        build_crawl("mine", new, tmp_path / "new", tmp_path, previous=tmp_path / "old")
        assert {path for path, _, _ in server.requests[seen:]} == {"/robots.txt", "/2", "/3"}
        assert [record.payload for record in records(tmp_path / "new")] == [page("3"), page("2"), page("1")]
        assert rows_of(tmp_path / "new")[urls[0]]["outcome"] == "max_pages"
        seen = len(server.requests)
        again = {**spec, "list": urls[:1], "edition": "2027-01"}
        build_crawl("mine", again, tmp_path / "again", tmp_path, previous=tmp_path / "new")
        assert server.requests[-1][0] == "/0" and len(server.requests) > seen


def test_the_crawl_option_describes_a_list_and_errors_say_why(tmp_path):
    (tmp_path / "urls.txt").write_text("# nothing yet\n")
    with pytest.raises(ValueError, match="names no URL"):
        parse_crawl("mine=urls:urls.txt", tmp_path)
    with pytest.raises(FileNotFoundError, match="no list of URLs"):
        parse_crawl("mine=urls:other.txt", tmp_path)
    (tmp_path / "urls.txt").write_text("https://a.example/\n")
    assert parse_crawl("mine=urls:urls.txt", tmp_path) == ("mine", {"source": "urls", "list": "urls.txt"})
    for settings, says in (({"delay": -1}, "delay is -1"), ({"user_agent": " "}, "user_agent is empty")):
        with pytest.raises(ValueError, match=says):
            build(tmp_path, "urls.txt", **settings)
