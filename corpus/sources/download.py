"""Bring files over HTTP(S), or from any fsspec store, politely and whole, however badly the server behaves.

Notable:
* a file is written to NAME.part and goes on where it stopped, after a dropped connection or a killed process,
  as long as the server's validator (ETag, else Last-Modified) says it still is the same file (RFC 9110, 13.1.5);
* it gets its name only when it has the length that the server stated and every gzip member in it unpacks to its CRC;
* 403, 429 and 5xx mean *slow down*, for all connections together: exponential back-off with jitter, and never
  sooner than Retry-After says. Only failures in a row without a new byte count against `tries`;
* a connection that carries fewer than SLOWEST bytes a second over `stall_seconds` is given up as stalled.
"""

import contextlib
import json
import queue
import random
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from corpus.sources.remote import Broke, CannotFetch, Manners, Refused, Reply, opener

CHUNK = 1 << 16  # bytes: at most 64 MiB when unpacked, for deflate packs 1,032 to 1
SLOWEST = 1024  # bytes a second, below which a connection counts as stalled
SPOILED_TRIES = 3  # times that a file may come whole and not unpack
LONGEST_RETRY_AFTER = 3600.0  # seconds; a server that says more is not waited for
SLOW_DOWN = frozenset({403, 408, 425, 429, 500, 502, 503, 504, 520, 522, 524})  # all others are final


class Cancelled(Exception):
    """The caller has asked to stop. What was fetched so far lies in NAME.part."""


class Spoiled(Exception):
    """The file came whole and is not what it should be."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to fetch: `url` to `to`. `first_bytes`: only so many, cut back to whole gzip members."""

    url: str
    to: Path
    first_bytes: int | None = None


class _Pace:
    """The moment before which no connection may ask again."""

    def __init__(self, stop: threading.Event):
        self.stop, self._lock, self._not_before = stop, threading.Lock(), 0.0

    def slow_down(self, seconds: float) -> None:
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    def wait(self, seconds: float = 0.0) -> None:
        """Sleep `seconds`, and until the moment has come. Raises Cancelled."""
        until = time.monotonic() + seconds
        while (left := max(until, self._not_before) - time.monotonic()) > 0:
            if self.stop.wait(left):
                break
        self.check()

    def check(self) -> None:
        if self.stop.is_set():
            raise Cancelled


def fetch_all(
    wanted: list[Wanted],
    manners: Manners,
    on_bytes: Callable[[int], None] = lambda amount: None,
    on_end: Callable[[Wanted, CannotFetch | None], None] = lambda file, error: None,
) -> None:
    """Fetch files over at most `manners.connections` connections.

    `on_bytes` is called with the bytes that came in since the last call, `on_end` as each file is whole or given
    up; both in the caller's thread. If one of them raises (or the user interrupts), all connections stop, and
    what came in is kept for the next try.
    """
    stop = threading.Event()
    pace, to_do, news = _Pace(stop), queue.SimpleQueue(), queue.SimpleQueue()
    for file in wanted:
        to_do.put(file)
    for _ in range(min(manners.connections, len(wanted))):
        # Daemons: one may hang in a read for stall_seconds, and nobody has to wait for it to see `stop`.
        threading.Thread(target=_work, args=(to_do, news, manners, pace), daemon=True).start()
    left = len(wanted)
    try:
        while left:
            file, outcome = news.get()
            if file is None:
                on_bytes(outcome)
                continue
            left -= 1
            if outcome is not None and not isinstance(outcome, CannotFetch):
                raise outcome
            on_end(file, outcome)
    finally:
        stop.set()


def _work(to_do: queue.SimpleQueue, news: queue.SimpleQueue, manners: Manners, pace: _Pace) -> None:
    """One connection: take files until none is left."""
    open_range = opener(manners)
    while True:
        try:
            file = to_do.get_nowait()
        except queue.Empty:
            return
        try:
            _fetch(file, open_range, manners, pace, lambda amount: news.put((None, amount)))
        except Cancelled:
            return
        except Exception as error:  # handed to the caller's thread, which raises what is not CannotFetch
            news.put((file, error))
        else:
            news.put((file, None))


class _Part:
    """NAME.part and what is known of it: the validator and length (bytes) that the server stated."""

    def __init__(self, file: Wanted):
        self.path = file.to.with_name(file.to.name + ".part")
        self._about = file.to.with_name(file.to.name + ".part.json")
        self.validator, self.total = "", None
        with contextlib.suppress(OSError, ValueError, KeyError):  # what is not known of is not trusted
            about = json.loads(self._about.read_text())
            if about["url"] == file.url and self.path.is_file():
                self.validator, self.total = about["validator"], about["total"]
        self.url = file.url
        self.size = self.path.stat().st_size if self.validator and self.path.is_file() else 0

    def begin(self, reply: Reply) -> None:
        """Take up where the reply does: behind what is here, or anew."""
        if reply.start and (reply.start, reply.validator) == (self.size, self.validator):
            return
        if reply.start:
            self.forget()
            raise Broke("the file has changed on the server since its first bytes came; from the beginning")
        self.forget()
        self.validator, self.total = reply.validator, reply.total
        about = {"url": self.url, "validator": self.validator, "total": self.total}
        self._about.write_text(json.dumps(about))

    def forget(self) -> None:
        self._about.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.size, self.validator, self.total = 0, "", None

    def publish(self, to: Path) -> None:
        self.path.replace(to)
        self._about.unlink(missing_ok=True)


def _fetch(
    file: Wanted, open_range: Callable[..., Reply], manners: Manners, pace: _Pace, on_bytes: Callable
) -> None:
    """Fetch one file, over as many connections as it takes. Raises CannotFetch or Cancelled."""
    part, failures, furthest, spoiled = _Part(file), 0, 0, 0
    on_bytes(part.size)
    while True:
        wait: float | None = None
        try:
            _pour(file, part, open_range, manners, pace, on_bytes)
            _check(file, part)
            pace.check()
            part.publish(file.to)
            return
        except Refused as refused:
            wait, reason, why = _told(file.url, refused)
        except Broke as broke:
            reason, why = "connection", str(broke)
        except Spoiled as error:
            part.forget()
            spoiled += 1
            reason, why = "damaged", str(error)
            if spoiled == SPOILED_TRIES:
                raise CannotFetch(file.url, reason, f"came {spoiled} times and {why}") from None
        failures = 1 if part.size > furthest else failures + 1
        furthest = max(furthest, part.size)
        if failures >= manners.tries:
            why += f"; given up after {failures} tries in a row without a new byte. Try later: it resumes"
            raise CannotFetch(file.url, reason, why)
        longest = min(manners.longest_wait, manners.first_wait * 2 ** (failures - 1))
        pause = random.uniform(longest / 2, longest)  # jitter, so that clients turned away together part ways
        if reason.startswith("status"):
            pace.slow_down(max(pause, wait or 0))
        pace.wait(pause)


def _told(url: str, refused: Refused) -> tuple[float | None, str, str]:
    """How long the server wants to be left alone, and what to say. Raises CannotFetch where its answer is final."""
    reason, why = f"status {refused.status}", f"the server answers {refused.status}"
    if refused.status not in SLOW_DOWN:
        raise CannotFetch(url, reason, why)
    if (refused.wait or 0) > LONGEST_RETRY_AFTER:
        raise CannotFetch(url, reason, f"{why} and wants to be left alone for {refused.wait:,.0f} s")
    return refused.wait, reason, why


def _pour(
    file: Wanted,
    part: _Part,
    open_range: Callable[..., Reply],
    manners: Manners,
    pace: _Pace,
    on_bytes: Callable,
) -> None:
    """Append what one connection brings to the part. Raises Broke where it is not all."""
    if part.total is not None and part.size == _end(file, part):
        return  # all here: the process was killed before it could say so
    pace.wait()
    start = part.size if part.validator else 0  # who cannot tell versions apart sends all of it again
    reply = open_range(file.url, start, file.first_bytes, part.validator)
    part.begin(reply)
    end, since, at_since = _end(file, part), time.monotonic(), part.size
    with part.path.open("ab", buffering=0) as out:
        for chunk in reply.chunks:
            pace.check()
            chunk = chunk if end is None else chunk[: end - part.size]
            out.write(chunk)
            part.size += len(chunk)
            on_bytes(len(chunk))
            if part.size == end:
                return
            if (passed := time.monotonic() - since) > manners.stall_seconds:
                if part.size - at_since < SLOWEST * passed:
                    raise Broke(
                        f"the connection has slowed to {(part.size - at_since) / passed:,.0f} bytes/s"
                    )
                since, at_since = time.monotonic(), part.size
    if end is not None:
        raise Broke(f"the connection ended at byte {part.size:,} of {end:,}")


def _end(file: Wanted, part: _Part) -> int | None:
    """How many bytes of the file are wanted; None where its length is not known."""
    return min((size for size in (part.total, file.first_bytes) if size is not None), default=None)


def _check(file: Wanted, part: _Part) -> None:
    """Unpack all of it; cut a first piece of a file back to its last whole member. Raises Spoiled."""
    members, end = whole_members(part.path)
    size = part.path.stat().st_size
    piece = size == file.first_bytes and size != part.total
    if piece and not members:
        raise Spoiled(f"its first record is longer than the {size:,} bytes wanted of it; ask for more bytes")
    if not piece and (end < size or not members):
        raise Spoiled(f"its last gzip member, at byte {end:,} of {size:,}, ends early")
    if end < size:
        with part.path.open("r+b") as out:
            out.truncate(end)


def whole_members(path: Path) -> tuple[int, int]:
    """How many whole gzip members a file begins with, and the byte after the last of them.

    Every member is unpacked and held to its CRC-32 and length (RFC 1952). Raises Spoiled at the first that is wrong.
    """
    members = end = at = 0
    member = None
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            at += len(chunk)
            while chunk:
                member = member or zlib.decompressobj(31)
                try:
                    member.decompress(chunk)
                except zlib.error as error:
                    raise Spoiled(f"does not unpack behind byte {end:,} ({error})") from None
                chunk = member.unused_data
                if member.eof:
                    members, end, member = members + 1, at - len(chunk), None
    return members, end
