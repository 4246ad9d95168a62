"""A list of URLs, fetched politely and kept as WARC, so that they go through the same door as any crawl.

Notable: fetched pages cannot be fetched again as they were, so the WARC is the version. `fetch-log.jsonl` has a row
for every URL of the list, with its outcome and where its records stand. Pages that the last version has, or that an
interrupted run has fetched, are not asked for again, unless `edition` has changed.
"""

import contextlib
import gzip
import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from corpus.sources.remote import USER_AGENT
from corpus.sources.source import (
    FETCH_LOG,
    FETCHED,
    Brought,
    Place,
    at_least,
    local_files,
    read_rows,
    write_rows,
)
from corpus.urls import host_of
from corpus.warc_writer import warc_record

Urls = list[str]
FileOrUrls = str | list  # (the knob is called `list`)
MAX_FILE = 1 << 30  # bytes of one WARC file, about as Common Crawl cuts them
NO_DATE = "1970-01-01T00:00:00Z"  # the same pages shall give the same bytes
INFO_ID = "urn:uuid:6e1b8e62-9a53-4f0d-8f6c-5d1f6a3c7a10"  # of the warcinfo record, the same in every file


@dataclass(frozen=True)
class FetchTask:
    """What the process is told. Times in seconds, sizes in bytes; see UrlList."""

    urls: Urls
    segment: Path
    log: Path
    edition: str
    user_agent: str
    delay: float
    per_host: int
    connections: int
    timeout: float
    max_bytes: int
    retries: int
    max_redirects: int
    longest_delay: float
    allow_private: bool
    verify_tls: bool


@dataclass(frozen=True)
class UrlList:
    """list: a text file of URLs, one a line (# begins a comment), relative to the project; or the URLs themselves.

    max_pages: fetch only the first so many. edition: any word; another one has all pages fetched anew. delay:
    seconds between two requests to a host (robots.txt's Crawl-delay may make it longer, up to longest_delay; hosts
    that want more are left out). per_host, connections: requests in progress, to one host and in all. timeout:
    seconds for a page. max_bytes: of a page as sent. retries: after the first try. user_agent: say how to reach you.
    allow_private: let URLs lead to addresses that are not of the open Internet. verify_tls: refuse bad certificates.
    """

    list: FileOrUrls = field(metadata={"needs": "a file of URLs, one a line"})
    max_pages: int | None = None
    edition: str = ""
    user_agent: str = USER_AGENT
    delay: int | float = 1.0
    per_host: int = 1
    connections: int = 16
    timeout: int | float = 30
    max_bytes: int = 8 << 20
    retries: int = 2
    max_redirects: int = 5
    longest_delay: int | float = 60
    allow_private: bool = False
    verify_tls: bool = True

    def __post_init__(self):
        at_least(
            self, max_pages=1, delay=0, per_host=1, connections=1, timeout=0.1, max_bytes=1000, retries=0
        )
        at_least(self, max_redirects=1, longest_delay=0)
        if not self.user_agent.strip():
            raise ValueError("user_agent is empty; name who asks, and how to be reached.")

    @classmethod
    def shorthand(cls, words: str) -> dict[str, Any]:
        """A file of URLs."""
        return {"list": words}

    def check(self, name: str, root: Path) -> None:
        self._read_list(name, root)

    def build(self, place: Place) -> Brought:
        """Fetch what is not there yet, then write pages-00000.warc.gz and so on, in the list's order."""
        if importlib.util.find_spec("scrapy") is None:
            raise ValueError(
                f"crawl {place.name}: fetching a list of URLs needs Scrapy. pip install -e '.[fetch]'"
            )
        urls = self._read_list(place.name, place.root)
        asked = urls[: self.max_pages]
        web = [url for url in asked if host_of(url) and url.lower().startswith(("http://", "https://"))]
        rows = _known_pages(place.before, self.edition) if place.before else {}
        segment, log = place.work / "segment.warc.gz", place.work / "segment.jsonl"
        _repair(segment, log)
        rows |= {
            row["url"]: {**row, "in": segment} for row in read_rows(log) if row["edition"] == self.edition
        }
        todo = [url for url in web if url not in rows]
        if todo:
            self._run(place, todo, segment, log)
            rows |= {row["url"]: {**row, "in": segment} for row in read_rows(log)}
        for url in urls[len(asked) :]:
            rows[url] = {"url": url, "outcome": "max_pages"}
        for url in set(asked) - set(web):
            rows[url] = {"url": url, "outcome": "not_a_web_address"}
        if not any("offset" in row for row in rows.values()):
            reasons = Counter(rows[url]["outcome"] for url in urls).most_common()
            told = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
            raise ValueError(f"crawl {place.name}: none of the {len(urls):,} URLs could be fetched: {told}.")
        write_rows(
            place.out / FETCH_LOG, _write_files(place.out, [rows[url] for url in urls], self.user_agent)
        )
        fetched = sum(rows[url]["outcome"] == FETCHED for url in urls)
        return Brought(f"{fetched:,} of {len(urls):,} URLs of a list, fetched", local_files(place.out))

    def _read_list(self, name: str, root: Path) -> Urls:
        """The URLs, each once. Raises FileNotFoundError or ValueError, a sentence."""
        lines = self.list
        if isinstance(lines, str):
            path = root / Path(lines).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"crawl {name}: there is no list of URLs at {path}.")
            lines = path.read_text("utf-8", errors="replace").splitlines()
        urls = dict.fromkeys(word for line in lines if (word := str(line).strip()) and word[0] != "#")
        if not urls:
            raise ValueError(f"crawl {name}: the list {self.list!r} names no URL.")
        return list(urls)

    def _run(self, place: Place, urls: Urls, segment: Path, log: Path) -> None:
        """Fetch in a process of its own: Scrapy's reactor cannot be started twice, and a crash costs only it."""
        names = (
            "edition",
            "user_agent",
            "delay",
            "per_host",
            "connections",
            "timeout",
            "max_bytes",
            "retries",
        )
        names += ("max_redirects", "longest_delay", "allow_private", "verify_tls")
        task = FetchTask(urls, segment, log, **{name: getattr(self, name) for name in names})
        process = get_context("spawn").Process(target=_fetch, args=(task, os.getpid()), daemon=True)
        process.start()
        try:
            process.join()
        finally:
            if process.is_alive():
                process.kill()
                process.join()
        missing = set(urls) - {row["url"] for row in read_rows(log)}
        if process.exitcode or missing:
            raise ValueError(
                f"crawl {place.name}: fetching stopped with {len(missing):,} of {len(urls):,} URLs left (exit code "
                f"{process.exitcode}; {log.with_name('scrapy.log')} may say why). Run it again: it goes on there."
            )


def _fetch(task: FetchTask, parent: int) -> None:
    """In the new process: only there is Scrapy imported."""
    from corpus.sources.url_spider import fetch

    fetch(task, parent)


def _repair(segment: Path, log: Path) -> None:
    """After a kill: leave off what the log does not know of, and a last line that was not finished."""
    rows = read_rows(log)
    if log.is_file():
        data = log.read_bytes()
        with log.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    if segment.is_file():
        with segment.open("r+b") as file:
            file.truncate(max((row["offset"] + row["length"] for row in rows if "offset" in row), default=0))


def _known_pages(before: Path, edition: str) -> dict[str, dict[str, Any]]:
    """The rows of pages that the last version holds whole, of this edition."""
    known = {}
    for row in read_rows(before / FETCH_LOG):
        if row["outcome"] == FETCHED and row.get("edition") == edition and "file" in row:
            row["in"] = before / row.pop("file")
            if _page(row):
                known[row["url"]] = row
    return known


def _page(row: dict[str, Any]) -> bytes:
    """The records of a page as stored, if they still unpack; else nothing."""
    try:
        with row["in"].open("rb") as file:
            file.seek(row["offset"])
            data = file.read(row["length"])
        gzip.decompress(data)
    except (OSError, EOFError, ValueError):
        return b""
    return data if len(data) == row["length"] else b""


def _write_files(out: Path, rows: Iterable[dict[str, Any]], user_agent: str) -> Iterator[dict[str, Any]]:
    """Copy the pages into WARC files; each row as the published log has it."""
    with contextlib.ExitStack() as files:
        number, file = 0, None
        for row in rows:
            shown = {name: value for name, value in row.items() if name != "in"}
            if "offset" in row:
                page = _page(row)
                if file is None or file.tell() + len(page) > MAX_FILE:
                    file = files.enter_context((out / f"pages-{number:05}.warc.gz").open("wb"))
                    file.write(gzip.compress(_info(user_agent), mtime=0))
                    number += 1
                shown |= {"file": Path(file.name).name, "offset": file.tell(), "length": len(page)}
                file.write(page)
            yield shown


def _info(user_agent: str) -> bytes:
    """The record that a WARC file begins with."""
    lines = ("software: Stemma, Scrapy", "format: WARC File Format 1.1", "robots: obey")
    block = "".join(f"{line}\r\n" for line in (*lines, f"http-header-user-agent: {user_agent}"))
    return warc_record("warcinfo", INFO_ID, NO_DATE, block.encode(), content_type="application/warc-fields")
