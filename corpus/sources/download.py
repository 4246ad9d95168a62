"""Fetch files over HTTP(S), or from any fsspec store, politely and whole, however badly the server behaves.

Notable:
* a file is written to NAME.part and resumed where it stopped, after a dropped connection or a killed process,
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

from corpus.sources.remote import (
    HttpStatusError,
    OpenRange,
    PermanentFetchError,
    RangeResponse,
    RequestPolicy,
    TransientFetchError,
    range_opener,
)

CHUNK = 1 << 16  # bytes: at most 64 MiB when unpacked, for deflate packs 1,032 to 1
SLOWEST = 1024  # bytes a second, below which a connection counts as stalled
DAMAGED_TRIES = 3  # times that a file may arrive whole and not unpack
LONGEST_RETRY_AFTER = 3600.0  # seconds; a server that asks for more is not waited for
SLOW_DOWN = frozenset({403, 408, 425, 429, 500, 502, 503, 504, 520, 522, 524})  # all others are final


class Cancelled(Exception):
    """The caller has asked to stop. What was fetched so far is in NAME.part."""


class DamagedFileError(Exception):
    """The file arrived whole and its content is not what it should be."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file to fetch: `url` to `to`. `first_bytes`: only so many, cut back to whole gzip members."""

    url: str
    to: Path
    first_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Received:
    """A connection's message to the caller's thread: bytes that came in."""

    bytes: int


@dataclass(frozen=True, slots=True)
class _Finished:
    """A connection's message to the caller's thread: a file is whole, or what stopped it."""

    file: Download
    error: Exception | None


class _BackOff:
    """The moment before which no connection may ask again."""

    def __init__(self, stop: threading.Event):
        self.stop, self._lock, self._not_before = stop, threading.Lock(), 0.0

    def slow_down(self, seconds: float) -> None:
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    def wait(self, seconds: float = 0.0) -> None:
        """Sleep `seconds`, and until that moment has come. Raises Cancelled."""
        until = time.monotonic() + seconds
        while (left := max(until, self._not_before) - time.monotonic()) > 0:
            if self.stop.wait(left):
                break
        self.check()

    def check(self) -> None:
        if self.stop.is_set():
            raise Cancelled


def fetch_all(
    files: list[Download],
    policy: RequestPolicy,
    on_bytes: Callable[[int], None] = lambda amount: None,
    on_end: Callable[[Download, PermanentFetchError | None], None] = lambda file, error: None,
) -> None:
    """Fetch files over at most `policy.connections` connections.

    `on_bytes` is called with the bytes that came in since the last call, `on_end` as each file is whole or given
    up; both in the caller's thread. If one of them raises (or the user interrupts), all connections stop, and
    what came in is kept for the next try.
    """
    stop = threading.Event()
    back_off = _BackOff(stop)
    to_do: queue.SimpleQueue[Download] = queue.SimpleQueue()
    messages: queue.SimpleQueue[_Received | _Finished] = queue.SimpleQueue()
    for file in files:
        to_do.put(file)
    for _ in range(min(policy.connections, len(files))):
        # Daemons: one may hang in a read for stall_seconds, and nobody has to wait for it to see `stop`.
        threading.Thread(target=_work, args=(to_do, messages, policy, back_off), daemon=True).start()
    left = len(files)
    try:
        while left:
            message = messages.get()
            if isinstance(message, _Received):
                on_bytes(message.bytes)
                continue
            left -= 1
            if message.error is not None and not isinstance(message.error, PermanentFetchError):
                raise message.error
            on_end(message.file, message.error)
    finally:
        stop.set()


def _work(
    to_do: queue.SimpleQueue[Download],
    messages: queue.SimpleQueue[_Received | _Finished],
    policy: RequestPolicy,
    back_off: _BackOff,
) -> None:
    """One connection: take files until none is left."""
    open_range = range_opener(policy)
    while True:
        try:
            file = to_do.get_nowait()
        except queue.Empty:
            return
        try:
            _fetch(file, open_range, policy, back_off, lambda amount: messages.put(_Received(amount)))
        except Cancelled:
            return
        except (
            Exception
        ) as error:  # handed to the caller's thread, which raises what is not a PermanentFetchError
            messages.put(_Finished(file, error))
        else:
            messages.put(_Finished(file, None))


class _PartialFile:
    """NAME.part and what is known of it: the validator and length (bytes) that the server stated."""

    def __init__(self, file: Download):
        self.path = file.to.with_name(file.to.name + ".part")
        self._state = file.to.with_name(file.to.name + ".part.json")
        self.validator = ""
        self.total: int | None = None
        with contextlib.suppress(OSError, ValueError, KeyError):  # bytes of unknown origin are not trusted
            state = json.loads(self._state.read_text())
            if state["url"] == file.url and self.path.is_file():
                self.validator, self.total = state["validator"], state["total"]
        self.url = file.url
        self.size = self.path.stat().st_size if self.validator and self.path.is_file() else 0

    def begin(self, response: RangeResponse) -> None:
        """Continue where the response does: after the bytes that are here, or from the first byte."""
        if response.start and (response.start, response.validator) == (self.size, self.validator):
            return
        if response.start:
            self.forget()
            raise TransientFetchError(
                "the file has changed on the server since its first bytes came; from the beginning"
            )
        self.forget()
        self.validator, self.total = response.validator, response.total
        state = {"url": self.url, "validator": self.validator, "total": self.total}
        self._state.write_text(json.dumps(state))

    def forget(self) -> None:
        self._state.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.size, self.validator, self.total = 0, "", None

    def publish(self, to: Path) -> None:
        self.path.replace(to)
        self._state.unlink(missing_ok=True)


def _fetch(
    file: Download,
    open_range: OpenRange,
    policy: RequestPolicy,
    back_off: _BackOff,
    on_bytes: Callable[[int], None],
) -> None:
    """Fetch one file, over as many connections as it takes. Raises PermanentFetchError or Cancelled."""
    part, failures, furthest, damaged = _PartialFile(file), 0, 0, 0
    on_bytes(part.size)
    while True:
        wait: float | None = None
        try:
            _receive(file, part, open_range, policy, back_off, on_bytes)
            _check(file, part)
            back_off.check()
            part.publish(file.to)
            return
        except HttpStatusError as status:
            wait, reason, why = _interpret_status(file.url, status)
        except TransientFetchError as error:
            reason, why = "connection", str(error)
        except DamagedFileError as error:
            part.forget()
            damaged += 1
            reason, why = "damaged", str(error)
            if damaged == DAMAGED_TRIES:
                raise PermanentFetchError(file.url, reason, f"came {damaged} times and {why}") from None
        failures = 1 if part.size > furthest else failures + 1
        furthest = max(furthest, part.size)
        if failures >= policy.tries:
            why += f"; given up after {failures} tries in a row without a new byte. Try later: it resumes"
            raise PermanentFetchError(file.url, reason, why)
        longest = min(policy.longest_wait, policy.first_wait * 2 ** (failures - 1))
        pause = random.uniform(
            longest / 2, longest
        )  # jitter: clients rejected together do not return together
        if reason.startswith("status"):
            back_off.slow_down(max(pause, wait or 0))
        back_off.wait(pause)


def _interpret_status(url: str, error: HttpStatusError) -> tuple[float | None, str, str]:
    """Seconds that the server wants no request for, the reason for the log, and a sentence.

    Raises PermanentFetchError where its answer is final.
    """
    reason, why = f"status {error.status}", f"the server answers {error.status}"
    if error.status not in SLOW_DOWN:
        raise PermanentFetchError(url, reason, why)
    if (error.retry_after or 0) > LONGEST_RETRY_AFTER:
        raise PermanentFetchError(
            url, reason, f"{why} and wants to be left alone for {error.retry_after:,.0f} s"
        )
    return error.retry_after, reason, why


def _receive(
    file: Download,
    part: _PartialFile,
    open_range: OpenRange,
    policy: RequestPolicy,
    back_off: _BackOff,
    on_bytes: Callable[[int], None],
) -> None:
    """Append what one connection brings to the partial file. Raises TransientFetchError where that is not all."""
    if part.total is not None and part.size == _end(file, part):
        return  # all here: the process was killed before it could publish the file
    back_off.wait()
    start = part.size if part.validator else 0  # a server without validators has to send all of it again
    response = open_range(file.url, start, file.first_bytes, part.validator)
    part.begin(response)
    end, since, at_since = _end(file, part), time.monotonic(), part.size
    with part.path.open("ab", buffering=0) as out:
        for chunk in response.chunks:
            back_off.check()
            chunk = chunk if end is None else chunk[: end - part.size]
            out.write(chunk)
            part.size += len(chunk)
            on_bytes(len(chunk))
            if part.size == end:
                return
            if (passed := time.monotonic() - since) > policy.stall_seconds:
                if part.size - at_since < SLOWEST * passed:
                    raise TransientFetchError(
                        f"the connection has slowed to {(part.size - at_since) / passed:,.0f} bytes/s"
                    )
                since, at_since = time.monotonic(), part.size
    if end is not None:
        raise TransientFetchError(f"the connection ended at byte {part.size:,} of {end:,}")


def _end(file: Download, part: _PartialFile) -> int | None:
    """How many bytes of the file are wanted; None where its length is not known."""
    return min((size for size in (part.total, file.first_bytes) if size is not None), default=None)


def _check(file: Download, part: _PartialFile) -> None:
    """Unpack all of it; cut a first piece of a file back to its last whole member. Raises DamagedFileError."""
    members, end = whole_members(part.path)
    size = part.path.stat().st_size
    piece = size == file.first_bytes and size != part.total
    if piece and not members:
        raise DamagedFileError(
            f"its first record is longer than the {size:,} bytes wanted of it; ask for more bytes"
        )
    if not piece and (end < size or not members):
        raise DamagedFileError(f"its last gzip member, at byte {end:,} of {size:,}, ends early")
    if end < size:
        with part.path.open("r+b") as out:
            out.truncate(end)


def whole_members(path: Path) -> tuple[int, int]:
    """How many whole gzip members a file begins with, and the byte after the last of them.

    Every member is unpacked and held to its CRC-32 and length (RFC 1952). Raises DamagedFileError at the first that is
    wrong.
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
                    raise DamagedFileError(f"does not unpack behind byte {end:,} ({error})") from None
                chunk = member.unused_data
                if member.eof:
                    members, end, member = members + 1, at - len(chunk), None
    return members, end
