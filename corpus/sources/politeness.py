"""Which requests of a fetch are not made, and how slowly the others are: robots.txt, refusals, private addresses.

Notable:
* robots.txt is obeyed as RFC 9309 says: a host whose robots.txt cannot be fetched (5xx, no answer) is not visited, one
  that has none (4xx) is; Crawl-delay is obeyed too, and so is Retry-After on 429 and 503;
* names that resolve to private addresses are refused where the connection is made, so no redirect and no DNS answer
  can lead into the network that this runs in.
"""

import ipaddress
import time
from collections import Counter
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from scrapy import signals
from scrapy.exceptions import (
    CannotResolveHostError,
    DownloadCancelledError,
    DownloadConnectionRefusedError,
    DownloadFailedError,
    DownloadTimeoutError,
    IgnoreRequest,
    ResponseDataLossError,
)
from scrapy.http import Request, Response, TextResponse
from scrapy.resolver import CachingThreadedResolver
from twisted.internet.error import DNSLookupError

from corpus.http import BadBody, unpack
from corpus.sources.fetch_task import FetchTask
from corpus.sources.remote import retry_after

LONGEST_RETRY_AFTER = 600.0  # seconds; a host that asks for more gets no requests but those it has refused
UNRESPONSIVE = 5  # pages in a row without any answer, after which a host gets no more requests
SLOWEST_DELAY = 60.0  # seconds between requests: the upper bound of what a host's refusals lead to
ROBOTS_LIMIT = 500 << 10  # bytes of robots.txt that are read: RFC 9309, 2.5
OUTCOMES = {  # what Scrapy raises -> the outcome in the log
    DownloadTimeoutError: "timeout",
    CannotResolveHostError: "dns",
    DownloadConnectionRefusedError: "connection",
    DownloadCancelledError: "too_large",
    ResponseDataLossError: "truncated",
    DownloadFailedError: "connection",
}


class NotFetched(IgnoreRequest):
    """A request that is not made or failed, with its outcome for the log."""

    def __init__(self, outcome: str, detail: str):
        super().__init__(detail)
        self.outcome, self.detail = outcome, detail


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet."""
    found = ipaddress.ip_address(address)
    return found.is_global and not found.is_multicast


class PublicResolver(CachingThreadedResolver):
    """Resolves no name to a private address, except proxies' own."""

    private: ClassVar[set[str]] = set()  # names that were refused

    def getHostByName(self, name: str, timeout: Any = ()) -> Any:
        return super().getHostByName(name, timeout).addCallback(self._require_public, name)

    def _require_public(self, address: str, name: str) -> str:
        if not is_public(address) and name not in {
            urlsplit(proxy).hostname for proxy in getproxies().values()
        }:
            self.private.add(name)
            raise DNSLookupError(f"{name} has the private address {address}")
        return address


class Politeness:
    """Downloader middleware between Scrapy's robots.txt and its retries; sees every response and robots.txt."""

    def __init__(self, crawler: Any) -> None:
        self.crawler = crawler
        self.task: FetchTask = crawler.settings["FETCH_TASK"]
        self.agent: str = crawler.settings["ROBOTSTXT_USER_AGENT"]
        self.refused: dict[str, NotFetched] = {}  # host and port -> why no page of it is asked for
        self.failures: Counter[str] = Counter()  # host and port -> pages in a row without an answer
        self.robots: dict[str, Any] = {}  # host and port -> its parsed robots.txt

    @classmethod
    def from_crawler(cls, crawler: Any) -> "Politeness":
        self = cls(crawler)
        crawler.politeness = self
        crawler.signals.connect(self.slow_down, signal=signals.response_downloaded)
        crawler.signals.connect(self.keep_robots, signal=signals.robots_parsed)
        return self

    def process_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        request.meta["download_slot"] = parts.hostname  # a redirect would keep the slot of where it came from
        if not _is_robots(request):
            if parts.netloc in self.refused:
                raise self.refused[parts.netloc]
            # Again, because of several requests that wait for one robots.txt Scrapy 2.19 lets the later ones through.
            robots = self.robots.get(parts.netloc)
            if robots and not robots.allowed(request.url, self.agent):
                raise NotFetched("robots", "Forbidden by robots.txt")
        if not self.task.allow_private and _is_private_literal(parts.hostname):
            raise NotFetched("private_address", f"{parts.hostname} is not an address of the open Internet")

    def process_response(self, request: Request, response: Response) -> Response:
        if not _is_robots(request):
            self.failures[urlsplit(request.url).netloc] = 0
            return response
        if response.status >= 500 or response.status == 429:
            return self._refuse(
                request, NotFetched("robots_unreachable", f"robots.txt answers {response.status}")
            )
        if response.status >= 400:
            return TextResponse(request.url, body=b"")
        try:
            coding = (response.headers.get("Content-Encoding") or b"").decode().lower()
            body = unpack(response.body, coding, self.task.max_bytes)
        except BadBody as error:
            return self._refuse(request, NotFetched("robots_unreachable", f"robots.txt: {error}"))
        return response.replace(body=body[:ROBOTS_LIMIT])

    def process_exception(self, request: Request, exception: Exception) -> Response | None:
        if not _is_robots(request):
            self._count_failure(request, exception)
            return None
        why = outcome_of(exception, request)
        return self._refuse(request, NotFetched(why.outcome, f"robots.txt: {why.detail}"))

    def _count_failure(self, request: Request, exception: Exception) -> None:
        """Make no more requests to a host that has not answered for several pages, all their tries included."""
        if isinstance(exception, IgnoreRequest | DownloadCancelledError):
            return
        netloc = urlsplit(request.url).netloc
        self.failures[netloc] += 1
        if self.failures[netloc] == UNRESPONSIVE:
            why = f"{netloc} has not answered for {UNRESPONSIVE} pages in a row"
            self.refused.setdefault(netloc, NotFetched("unresponsive", why))

    def _refuse(self, request: Request, why: NotFetched) -> Response:
        """Let no page of the host be requested."""
        origin = request.meta.get("redirect_urls", [request.url])[0]
        self.refused[urlsplit(origin).netloc] = why
        return TextResponse(request.url, body=b"User-agent: *\nDisallow: /\n")

    def keep_robots(self, robotparser: Any, request: Request) -> None:
        """Keep the rules of the host of `request`, and its Crawl-delay."""
        parts, delay = urlsplit(request.url), robotparser.crawl_delay(self.agent)
        self.robots[parts.netloc] = robotparser
        if delay and delay > self.task.longest_delay:
            why = NotFetched("crawl_delay", f"robots.txt wants {delay:g} s between requests")
            self.refused[parts.netloc] = why
        elif delay:
            self._set_delay(parts.hostname, delay)

    def slow_down(self, response: Response, request: Request) -> None:
        """429 and 503: twice the delay, and not before Retry-After."""
        if response.status not in (429, 503):
            return
        slot = self.crawler.engine.downloader.slots.get(request.meta["download_slot"])
        seconds = retry_after((response.headers.get("Retry-After") or b"").decode("latin-1")) or 0.0
        if seconds > LONGEST_RETRY_AFTER:
            request.meta["dont_retry"] = True
            self.refused[urlsplit(request.url).netloc] = NotFetched(
                "slow_down", f"Retry-After is {seconds:,.0f} s"
            )
        elif slot:
            self._set_delay(request.meta["download_slot"], min(2 * max(slot.delay, 0.5), SLOWEST_DELAY))
            slot.lastseen = max(slot.lastseen, time.monotonic() + seconds - slot.delay)

    def _set_delay(self, host: str | None, seconds: float) -> None:
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
        return False  # a name: the resolver checks it


def outcome_of(error: BaseException | None, request: Request) -> NotFetched:
    """What the log says about a request that gave no response."""
    if isinstance(error, NotFetched):
        return error
    if urlsplit(request.url).hostname in PublicResolver.private:
        return NotFetched("private_address", "the name leads to an address that is not of the open Internet")
    if isinstance(error, IgnoreRequest):
        return NotFetched("redirects" if "redirection" in str(error) else "robots", str(error))
    outcome = next((word for kind, word in OUTCOMES.items() if isinstance(error, kind)), "error")
    return NotFetched(outcome, f"{type(error).__name__}: {error}"[:200])
