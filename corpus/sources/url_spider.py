"""The process that fetches a list of URLs, with Scrapy: polite, bounded, and every URL ends in a row of the log.

Notable: each page is appended to the segment, then its row to the log, so a killed process loses only pages in flight.
What is not requested, and how slowly the rest is, is decided in corpus.sources.politeness.
"""

import gzip
import json
import os
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http.client import OK, responses
from typing import Any
from urllib.parse import urlsplit

import scrapy
from scrapy.crawler import CrawlerProcess
from scrapy.http import Headers, Request, Response
from scrapy.resolver import CachingThreadedResolver

from core.progress import progress_bar
from corpus.engines.pool import die_with_parent
from corpus.sources.fetch_task import FetchTask
from corpus.sources.politeness import Politeness, PublicResolver, outcome_of
from corpus.sources.source import FETCHED
from corpus.warc_writer import warc_record

HOP_BY_HOP = (b"Transfer-Encoding", b"Content-Length", b"Connection", b"Keep-Alive")


class ListSpider(scrapy.Spider):
    """Fetches each URL of the task once, and follows no link but redirects."""

    name = "stemma"

    def __init__(self, task: FetchTask):
        super().__init__()
        self.task = task
        self.segment, self.fetch_log = task.segment.open("ab"), task.log.open("ab")
        self.bar = progress_bar(len(task.urls), "fetching pages", " pages")

    async def start(self) -> AsyncIterator[Any]:
        for url in self.task.urls:
            yield Request(
                url,
                self.keep,
                errback=self.failed,
                dont_filter=True,
                headers={"Accept-Encoding": "gzip"},
                meta={"url": url},
            )

    def keep(self, response: Response) -> None:
        """Append the page's records to the segment, and its row to the log."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        urn, extra = f"urn:uuid:{uuid.uuid4()}", {}
        if response.ip_address:
            extra["WARC-IP-Address"] = str(response.ip_address)
        block = (
            _status_line(response.status)
            + _header_lines(response.headers, len(response.body))
            + response.body
        )
        page = warc_record("response", urn, now, block, url=response.url, extra=extra)
        asked = warc_record(
            "request",
            f"urn:uuid:{uuid.uuid4()}",
            now,
            _request_block(response.request or Request(response.url)),
            url=response.url,
            content_type="application/http; msgtype=request",
            extra={"WARC-Concurrent-To": f"<{urn}>"},
        )
        offset = self.segment.tell()
        length = self.segment.write(gzip.compress(page, mtime=0) + gzip.compress(asked, mtime=0))
        self.segment.flush()
        outcome = FETCHED if response.status == OK else f"status {response.status}"
        self.write_row(response.meta["url"], outcome, final_url=response.url, offset=offset, length=length)

    def failed(self, failure: Any) -> None:
        """Log a URL without a response."""
        request = failure.request
        why = outcome_of(failure.value, request)
        if why.outcome == "robots":
            crawler: Any = self.crawler  # Politeness has set this attribute of it
            why = crawler.politeness.refused.get(urlsplit(request.url).netloc, why)
        self.write_row(request.meta["url"], why.outcome, final_url=request.url, detail=why.detail)

    def write_row(self, url: str, outcome: str, **more: Any) -> None:
        row = {"url": url, "outcome": outcome, "edition": self.task.edition, **more}
        self.fetch_log.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.fetch_log.flush()
        self.bar.update()

    def closed(self, reason: str) -> None:
        self.bar.close()
        self.segment.close()
        self.fetch_log.close()


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {responses.get(status, '')}".rstrip().encode() + b"\r\n"


def _header_lines(headers: Headers, length: int) -> bytes:
    """The response's header, with the length of the body as stored. Fields about the transfer are kept under
    another name, as Common Crawl does."""
    lines = []
    for name, values in headers.items():
        kept = b"X-Crawler-" + name if name.title() in HOP_BY_HOP else name
        lines += [
            kept + b": " + value.replace(b"\r", b" ").replace(b"\n", b" ") + b"\r\n" for value in values
        ]
    return b"".join(lines) + f"Content-Length: {length}\r\n\r\n".encode()


def _request_block(request: Request) -> bytes:
    parts = urlsplit(request.url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"{request.method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode()]
    lines += [name + b": " + value + b"\r\n" for name, values in request.headers.items() for value in values]
    return b"".join(lines) + b"\r\n"


def fetch(task: FetchTask, parent: int) -> None:
    """Fetch all URLs of the task; to be run in a process of its own, which ends with its parent."""
    die_with_parent(parent)
    settings = {
        "FETCH_TASK": task,
        "USER_AGENT": task.user_agent,
        "ROBOTSTXT_OBEY": True,
        "ROBOTSTXT_USER_AGENT": task.user_agent.partition("/")[0],
        "DOWNLOADER_MIDDLEWARES": {Politeness: 110},  # robots.txt is 100, retries 550, redirects 600
        "TWISTED_DNS_RESOLVER": CachingThreadedResolver if task.allow_private else PublicResolver,
        "DOWNLOAD_HANDLERS": dict.fromkeys(("file", "ftp", "s3", "data")),
        "DOWNLOAD_DELAY": task.delay,
        "DOWNLOAD_TIMEOUT": task.timeout,
        "DNS_TIMEOUT": task.timeout,
        "DOWNLOAD_MAXSIZE": task.max_bytes,
        "DOWNLOAD_WARNSIZE": 0,
        "DOWNLOAD_VERIFY_CERTIFICATES": task.verify_tls,
        "SCHEDULER_MEMORY_QUEUE": "scrapy.squeues.FifoMemoryQueue",  # in the list's order, host by host
        "CONCURRENT_REQUESTS": task.connections,
        "CONCURRENT_REQUESTS_PER_DOMAIN": task.per_host,
        "RETRY_TIMES": task.retries,
        "RETRY_GIVE_UP_LOG_LEVEL": "DEBUG",
        "REDIRECT_MAX_TIMES": task.max_redirects,
        "METAREFRESH_ENABLED": False,
        "COMPRESSION_ENABLED": False,  # bodies are stored as they came
        "COOKIES_ENABLED": False,
        "HTTPERROR_ALLOW_ALL": True,
        "TELNETCONSOLE_ENABLED": False,
        "REMOTE_CONTROL_ENABLED": False,
        "LOG_LEVEL": "ERROR",
        "LOG_FILE": os.fspath(task.log.with_name("scrapy.log")),
    }
    process = CrawlerProcess(settings)
    process.crawl(ListSpider, task=task)
    process.start()
