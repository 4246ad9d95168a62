"""A list of URLs, fetched politely and kept as WARC, so that they are cleaned like any crawl.

Notable: fetched pages cannot be fetched again as they were, so the WARC is the version. `fetch-log.jsonl` has a row
for every URL of the list, with its outcome and where its records are. Pages that the last version has, or that an
interrupted run has fetched, are not requested again, unless `edition` has changed.
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

from core.errors import ConfigError, DataError, MissingError, RunError
from core.files import read_json_lines, write_json_lines
from corpus.sources.fetch_task import FetchTask
from corpus.sources.remote import USER_AGENT
from corpus.sources.source import (
    FETCH_LOG,
    FETCHED,
    BuildContext,
    FetchedFiles,
    local_files,
    require_at_least,
)
from corpus.urls import host_of
from corpus.warc_writer import warc_record

Urls = list[str]
FileOrUrls = str | list[str]  # (the setting is called `list`)
MAX_FILE = 1 << 30  # bytes of one WARC file, about as Common Crawl cuts them
NO_DATE = "1970-01-01T00:00:00Z"  # so that the same pages give the same bytes
INFO_ID = "urn:uuid:6e1b8e62-9a53-4f0d-8f6c-5d1f6a3c7a10"  # of the warcinfo record, the same in every file


@dataclass(frozen=True)
class UrlList:
    """Which URLs, and how to ask for them."""

    list: FileOrUrls = (
        field(  # a text file of URLs, relative to the project (# begins a comment); or the URLs
            metadata={"needs": "a file of URLs, one a line"}
        )
    )
    max_pages: int | None = None  # fetch only the first so many
    edition: str = ""  # any text; when it changes, all pages are fetched again
    user_agent: str = USER_AGENT  # say how you can be reached
    delay: float = 1.0  # seconds between two requests to a host; robots.txt's Crawl-delay may make it longer
    per_host: int = 1  # requests in progress to one host
    connections: int = 16  # requests in progress in all
    timeout: float = 30  # seconds for a page
    max_bytes: int = 8 << 20  # of a page as sent
    retries: int = 2  # after the first try
    max_redirects: int = 5
    longest_delay: float = 60  # seconds; hosts whose robots.txt asks for a longer Crawl-delay are left out
    allow_private: bool = False  # let URLs lead to addresses that are not of the public Internet
    verify_tls: bool = True  # refuse bad certificates

    def __post_init__(self) -> None:
        require_at_least(
            self, max_pages=1, delay=0, per_host=1, connections=1, timeout=0.1, max_bytes=1000, retries=0
        )
        require_at_least(self, max_redirects=1, longest_delay=0)
        if not self.user_agent.strip():
            raise ValueError("user_agent is empty; say who asks, and how to reach you.")

    @classmethod
    def shorthand(cls, argument: str) -> dict[str, Any]:
        """A file of URLs."""
        return {"list": argument}

    def check(self, name: str, root: Path) -> None:
        """Raises MissingError without the file of URLs, ConfigError where it names none."""
        self._read_list(name, root)

    def build(self, context: BuildContext) -> FetchedFiles:
        """Fetch what is not there yet, then write pages-00000.warc.gz and so on, in the list's order.

        Raises RunError where fetching stops (run it again: it resumes), DataError where no URL could be fetched.
        """
        if importlib.util.find_spec("scrapy") is None:
            raise ConfigError(
                f"crawl {context.name}: fetching a list of URLs needs Scrapy. pip install -e '.[fetch]'"
            )
        urls = self._read_list(context.name, context.root)
        wanted = urls[: self.max_pages]
        web = [url for url in wanted if host_of(url) and url.lower().startswith(("http://", "https://"))]
        rows = self._fetch(context, web)
        for url in urls[len(wanted) :]:
            rows[url] = {"url": url, "outcome": "max_pages"}
        for url in set(wanted) - set(web):
            rows[url] = {"url": url, "outcome": "not_a_web_address"}
        if not any("offset" in row for row in rows.values()):
            reasons = Counter(rows[url]["outcome"] for url in urls).most_common()
            listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
            raise DataError(
                f"crawl {context.name}: none of the {len(urls):,} URLs could be fetched: {listed}."
            )
        published = _write_files(context.out, [rows[url] for url in urls], self.user_agent)
        write_json_lines(context.out / FETCH_LOG, published)
        fetched = sum(rows[url]["outcome"] == FETCHED for url in urls)
        return FetchedFiles(f"{fetched:,} of {len(urls):,} URLs of a list, fetched", local_files(context.out))

    def _fetch(self, context: BuildContext, urls: Urls) -> dict[str, dict[str, Any]]:
        """A row for each URL, and those of the last version: as in the log, `in` being the file of its records."""
        rows = _known_pages(context.previous, self.edition) if context.previous else {}
        segment, log = context.work / "segment.warc.gz", context.work / "segment.jsonl"
        _repair(segment, log)
        rows |= {
            row["url"]: {**row, "in": segment}
            for row in read_json_lines(log)
            if row["edition"] == self.edition
        }
        if to_do := [url for url in urls if url not in rows]:
            self._run(context, to_do, segment, log)
            rows |= {row["url"]: {**row, "in": segment} for row in read_json_lines(log)}
        return rows

    def _read_list(self, name: str, root: Path) -> Urls:
        """The URLs, each once. Raises MissingError or ConfigError."""
        lines = self.list
        if isinstance(lines, str):
            path = root / Path(lines).expanduser()
            if not path.is_file():
                raise MissingError(f"crawl {name}: there is no list of URLs at {path}.")
            lines = path.read_text("utf-8", errors="replace").splitlines()
        urls = dict.fromkeys(url for line in lines if (url := line.strip()) and url[0] != "#")
        if not urls:
            raise ConfigError(f"crawl {name}: the list {self.list!r} names no URL.")
        return [*urls]

    def _run(self, context: BuildContext, urls: Urls, segment: Path, log: Path) -> None:
        """Fetch in a process of its own: Scrapy's reactor cannot be started twice, and a crash costs only it."""
        task = FetchTask(
            urls,
            segment,
            log,
            edition=self.edition,
            user_agent=self.user_agent,
            delay=self.delay,
            per_host=self.per_host,
            connections=self.connections,
            timeout=self.timeout,
            max_bytes=self.max_bytes,
            retries=self.retries,
            max_redirects=self.max_redirects,
            longest_delay=self.longest_delay,
            allow_private=self.allow_private,
            verify_tls=self.verify_tls,
        )
        process = get_context("spawn").Process(target=_fetch, args=(task, os.getpid()), daemon=True)
        process.start()
        try:
            process.join()
        finally:
            if process.is_alive():
                process.kill()
                process.join()
        missing = set(urls) - {row["url"] for row in read_json_lines(log)}
        if process.exitcode or missing:
            raise RunError(
                f"crawl {context.name}: fetching stopped with {len(missing):,} of {len(urls):,} URLs left (exit "
                f"code {process.exitcode}; {log.with_name('scrapy.log')} may say why). Run it again: it resumes there."
            )


def _fetch(task: FetchTask, parent: int) -> None:
    """In the new process: only there is Scrapy imported."""
    from corpus.sources.url_spider import fetch

    fetch(task, parent)


def _repair(segment: Path, log: Path) -> None:
    """After a kill: cut off what the log does not list, and a last line that was not finished."""
    rows = read_json_lines(log)
    if log.is_file():
        data = log.read_bytes()
        with log.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    if segment.is_file():
        with segment.open("r+b") as file:
            file.truncate(max((row["offset"] + row["length"] for row in rows if "offset" in row), default=0))


def _known_pages(previous: Path, edition: str) -> dict[str, dict[str, Any]]:
    """The rows of pages of this edition that the last version holds whole."""
    known = {}
    for row in read_json_lines(previous / FETCH_LOG):
        if row["outcome"] == FETCHED and row.get("edition") == edition and "file" in row:
            row["in"] = previous / row.pop("file")
            if _page(row):
                known[row["url"]] = row
    return known


def _page(row: dict[str, Any]) -> bytes:
    """The records of a page as stored, if they still unpack; else nothing."""
    try:
        with row["in"].open("rb") as file:
            file.seek(row["offset"])
            data: bytes = file.read(row["length"])
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
                    file.write(gzip.compress(_warcinfo(user_agent), mtime=0))
                    number += 1
                shown |= {"file": Path(file.name).name, "offset": file.tell(), "length": len(page)}
                file.write(page)
            yield shown


def _warcinfo(user_agent: str) -> bytes:
    """The record that a WARC file begins with."""
    lines = ("software: Stemma, Scrapy", "format: WARC File Format 1.1", "robots: obey")
    block = "".join(f"{line}\r\n" for line in (*lines, f"http-header-user-agent: {user_agent}"))
    return warc_record("warcinfo", INFO_ID, NO_DATE, block.encode(), content_type="application/warc-fields")
