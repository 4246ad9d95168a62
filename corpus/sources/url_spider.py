"""The process that fetches a list of URLs, with Scrapy: polite, bounded, and every URL ends in a row of the log.

Notable:
* robots.txt is obeyed as RFC 9309 says: a host whose robots.txt cannot be had (5xx, no answer) is not visited, one
  that has none (4xx) is; Crawl-delay is obeyed too, and so is Retry-After on 429 and 503;
* names that lead to private addresses are refused where the connection is made, so no redirect and no DNS answer
  can lead into the network that this runs in;
* each page is appended to the segment, then its row to the log: a killed process loses only pages in flight.
"""

import gzip
import ipaddress
import json
import os
import time
import uuid
from collections import Counter
from datetime import UTC, datetime
from http.client import OK, responses
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import scrapy
from scrapy import signals
from scrapy.crawler import CrawlerProcess
from scrapy.exceptions import (
    CannotResolveHostError,
    DownloadCancelledError,
    DownloadConnectionRefusedError,
    DownloadFailedError,
    DownloadTimeoutError,
    IgnoreRequest,
    ResponseDataLossError,
)
from scrapy.http import Headers, Request, Response, TextResponse
from scrapy.resolver import CachingThreadedResolver
from twisted.internet.error import DNSLookupError
from twisted.python.failure import Failure

from corpus.engines.pool import die_with_parent
from corpus.http import BadBody, unpack
from corpus.sources.remote import retry_after
from corpus.sources.source import FETCHED
from corpus.sources.urls import FetchTask
from corpus.warc_writer import warc_record

LONGEST_RETRY_AFTER = 600.0  # seconds; a host that says more gets no more requests than those it has refused
UNRESPONSIVE = 5  # pages in a row without any answer, after which a host is left alone
SLOWEST_DELAY = 60.0  # seconds between requests that a host's refusals may drive us to
ROBOTS_LIMIT = 500 << 10  # bytes of robots.txt that are read: RFC 9309, 2.5
OUTCOMES = {  # what Scrapy raises -> the outcome in the log
    DownloadTimeoutError: "timeout",
    CannotResolveHostError: "dns",
    DownloadConnectionRefusedError: "connection",
    DownloadCancelledError: "too_large",
    ResponseDataLossError: "truncated",
    DownloadFailedError: "connection",
}
HOP_BY_HOP = (b"Transfer-Encoding", b"Content-Length", b"Connection", b"Keep-Alive")


class Told(IgnoreRequest):
    """A request not made, and the outcome that the log shall tell."""

    def __init__(self, outcome: str, detail: str):
        super().__init__(detail)
        self.outcome, self.detail = outcome, detail


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open Internet."""
    found = ipaddress.ip_address(address)
    return found.is_global and not found.is_multicast


class GuardedResolver(CachingThreadedResolver):
    """Resolves no name to a private address, except proxies' own."""

    private: ClassVar[set[str]] = set()  # names that were refused

    def getHostByName(self, name: str, timeout: Any = ()) -> Any:
        return super().getHostByName(name, timeout).addCallback(self._guard, name)

    def _guard(self, address: str, name: str) -> str:
        if not is_public(address) and name not in {
            urlsplit(proxy).hostname for proxy in getproxies().values()
        }:
            self.private.add(name)
            raise DNSLookupError(f"{name} has the private address {address}")
        return address


class Politeness:
    """Downloader middleware between Scrapy's robots.txt and its retries; hears of every response and robots.txt."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> "Politeness":
        self = cls()
        self.crawler, self.task = crawler, crawler.settings["FETCH_TASK"]
        self.agent = crawler.settings["ROBOTSTXT_USER_AGENT"]
        self.refused: dict[str, Told] = {}  # host and port -> why no page of it is asked for
        self.failures: Counter[str] = Counter()  # host and port -> pages in a row without an answer
        self.robots: dict[str, Any] = {}  # host and port -> its parsed robots.txt
        crawler.politeness = self
        crawler.signals.connect(self.slow_down, signal=signals.response_downloaded)
        crawler.signals.connect(self.heard_robots, signal=signals.robots_parsed)
        return self

    def process_request(self, request: Request) -> None:
        place = urlsplit(request.url)
        request.meta["download_slot"] = place.hostname  # a redirect would keep the slot of where it came from
        if not _is_robots(request):
            if place.netloc in self.refused:
                raise self.refused[place.netloc]
            # Again, because of several requests that wait for one robots.txt Scrapy 2.19 lets the later ones through.
            robots = self.robots.get(place.netloc)
            if robots and not robots.allowed(request.url, self.agent):
                raise Told("robots", "Forbidden by robots.txt")
        if not self.task.allow_private and _is_private_literal(place.hostname):
            raise Told("private_address", f"{place.hostname} is not an address of the open Internet")

    def process_response(self, request: Request, response: Response) -> Response:
        if not _is_robots(request):
            self.failures[urlsplit(request.url).netloc] = 0
            return response
        if response.status >= 500 or response.status == 429:
            return self._refuse(request, Told("robots_unreachable", f"robots.txt answers {response.status}"))
        if response.status >= 400:
            return TextResponse(request.url, body=b"")
        try:
            coding = (response.headers.get("Content-Encoding") or b"").decode().lower()
            body = unpack(response.body, coding, self.task.max_bytes)
        except BadBody as error:
            return self._refuse(request, Told("robots_unreachable", f"robots.txt: {error}"))
        return response.replace(body=body[:ROBOTS_LIMIT])

    def process_exception(self, request: Request, exception: Exception) -> Response | None:
        if not _is_robots(request):
            self._count_failure(request, exception)
            return None
        told = outcome_of(exception, request)
        return self._refuse(request, Told(told.outcome, f"robots.txt: {told.detail}"))

    def _count_failure(self, request: Request, exception: Exception) -> None:
        """Leave a host alone that has not answered for several pages, all their tries included."""
        if isinstance(exception, IgnoreRequest | DownloadCancelledError):
            return
        netloc = urlsplit(request.url).netloc
        self.failures[netloc] += 1
        if self.failures[netloc] == UNRESPONSIVE:
            why = f"{netloc} has not answered for {UNRESPONSIVE} pages in a row"
            self.refused.setdefault(netloc, Told("unresponsive", why))

    def _refuse(self, request: Request, told: Told) -> Response:
        """Let no page of the host be asked for."""
        origin = request.meta.get("redirect_urls", [request.url])[0]
        self.refused[urlsplit(origin).netloc] = told
        return TextResponse(request.url, body=b"User-agent: *\nDisallow: /\n")

    def heard_robots(self, robotparser: Any, request: Request) -> None:
        """Keep the rules of the host of `request`, and its Crawl-delay."""
        place, delay = urlsplit(request.url), robotparser.crawl_delay(self.agent)
        self.robots[place.netloc] = robotparser
        if delay and delay > self.task.longest_delay:
            self.refused[place.netloc] = Told("crawl_delay", f"robots.txt wants {delay:g} s between requests")
        elif delay:
            self._set_delay(place.hostname, delay)

    def slow_down(self, response: Response, request: Request) -> None:
        """429 and 503: twice the delay, and not before Retry-After."""
        if response.status not in (429, 503):
            return
        slot = self.crawler.engine.downloader.slots.get(request.meta["download_slot"])
        seconds = retry_after((response.headers.get("Retry-After") or b"").decode("latin-1")) or 0.0
        if seconds > LONGEST_RETRY_AFTER:
            request.meta["dont_retry"] = True
            self.refused[urlsplit(request.url).netloc] = Told("slow_down", f"Retry-After is {seconds:,.0f} s")
        elif slot:
            self._set_delay(request.meta["download_slot"], min(2 * max(slot.delay, 0.5), SLOWEST_DELAY))
            slot.lastseen = max(slot.lastseen, time.monotonic() + seconds - slot.delay)

    def _set_delay(self, host: str, seconds: float) -> None:
        downloader = self.crawler.engine.downloader
        downloader.per_slot_settings[host] = {"delay": seconds, "concurrency": 1, "jitter": 0}
        if slot := downloader.slots.get(host):
            slot.delay, slot.concurrency, slot.jitter = max(slot.delay, seconds), 1, 0


def _is_robots(request: Request) -> bool:
    return bool(request.meta.get("dont_obey_robotstxt"))


def _is_private_literal(host: str | None) -> bool:
    try:
        return not is_public((host or "").strip("[]"))
    except ValueError:
        return False  # a name: the resolver sees to it


def outcome_of(error: BaseException, request: Request) -> Told:
    """What the log says about a request that gave no response."""
    if isinstance(error, Told):
        return error
    if urlsplit(request.url).hostname in GuardedResolver.private:
        return Told("private_address", "the name leads to an address that is not of the open Internet")
    if isinstance(error, IgnoreRequest):
        return Told("redirects" if "redirection" in str(error) else "robots", str(error))
    outcome = next((word for kind, word in OUTCOMES.items() if isinstance(error, kind)), "error")
    return Told(outcome, f"{type(error).__name__}: {error}"[:200])


class ListSpider(scrapy.Spider):
    """Fetches each URL of the task once, and follows no link but redirects."""

    name = "stemma"

    def __init__(self, task: FetchTask):
        from tqdm import tqdm

        super().__init__()
        self.task = task
        self.segment, self.log = task.segment.open("ab"), task.log.open("ab")
        self.bar = tqdm(total=len(task.urls), desc="fetching pages", unit=" pages", mininterval=1.0)

    async def start(self) -> Any:
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
        urn, about = f"urn:uuid:{uuid.uuid4()}", {}
        if response.ip_address:
            about["WARC-IP-Address"] = str(response.ip_address)
        block = (
            _status_line(response.status)
            + _header_lines(response.headers, len(response.body))
            + response.body
        )
        page = warc_record("response", urn, now, block, url=response.url, extra=about)
        asked = warc_record(
            "request",
            f"urn:uuid:{uuid.uuid4()}",
            now,
            _request_block(response.request),
            url=response.url,
            content_type="application/http; msgtype=request",
            extra={"WARC-Concurrent-To": f"<{urn}>"},
        )
        offset = self.segment.tell()
        length = self.segment.write(gzip.compress(page, mtime=0) + gzip.compress(asked, mtime=0))
        self.segment.flush()
        outcome = FETCHED if response.status == OK else f"status {response.status}"
        self.write_row(response.meta["url"], outcome, final_url=response.url, offset=offset, length=length)

    def failed(self, failure: Failure) -> None:
        """Log a URL without a response."""
        request = failure.request
        told = outcome_of(failure.value, request)
        if told.outcome == "robots":
            told = self.crawler.politeness.refused.get(urlsplit(request.url).netloc, told)
        self.write_row(request.meta["url"], told.outcome, final_url=request.url, detail=told.detail)

    def write_row(self, url: str, outcome: str, **more: Any) -> None:
        row = {"url": url, "outcome": outcome, "edition": self.task.edition, **more}
        self.log.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.log.flush()
        self.bar.update()

    def closed(self, reason: str) -> None:
        for file in (self.bar, self.segment, self.log):
            file.close()


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {responses.get(status, '')}".rstrip().encode() + b"\r\n"


def _header_lines(headers: Headers, length: int) -> bytes:
    """The response's header, with the length of the body as stored. What told of the transfer is kept under another
    name, as Common Crawl does."""
    lines = []
    for name, values in headers.items():
        kept = b"X-Crawler-" + name if name.title() in HOP_BY_HOP else name
        lines += [
            kept + b": " + value.replace(b"\r", b" ").replace(b"\n", b" ") + b"\r\n" for value in values
        ]
    return b"".join(lines) + f"Content-Length: {length}\r\n\r\n".encode()


def _request_block(request: Request) -> bytes:
    place = urlsplit(request.url)
    path = (place.path or "/") + (f"?{place.query}" if place.query else "")
    lines = [f"{request.method} {path} HTTP/1.1\r\nHost: {place.netloc}\r\n".encode()]
    lines += [name + b": " + value + b"\r\n" for name, values in request.headers.items() for value in values]
    return b"".join(lines) + b"\r\n"


def fetch(task: FetchTask, parent: int) -> None:
    """Fetch all URLs of the task; to be run in a process of its own, that dies with its parent."""
    die_with_parent(parent)
    settings = {
        "FETCH_TASK": task,
        "USER_AGENT": task.user_agent,
        "ROBOTSTXT_OBEY": True,
        "ROBOTSTXT_USER_AGENT": task.user_agent.partition("/")[0],
        "DOWNLOADER_MIDDLEWARES": {Politeness: 110},  # robots.txt is 100, retries 550, redirects 600
        "TWISTED_DNS_RESOLVER": CachingThreadedResolver if task.allow_private else GuardedResolver,
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
