"""Ask for a range of bytes of a file behind a URL: over HTTP(S), or from an object store through fsspec.

Notable: a response says where in the file its body begins, how long the file is and the validator (ETag, else
Last-Modified) by which its server distinguishes versions of it; bodies are never decompressed on the way.

    PermanentFetchError    (for the user) a file that could not be fetched; the crawl fails or lists it
    HttpStatusError        the server answered with an error status: final, or a reason to slow down
    TransientFetchError    the connection failed, stalled or ended early: worth another try
"""

import email.utils
import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from core.errors import RunError

USER_AGENT = "Stemma/0.1 (builds text corpora for language models)"
CHUNK = 1 << 16  # bytes
STORE_CHUNK = 8 << 20  # bytes of one range request to an object store


class PermanentFetchError(RunError):
    """A file that could not be fetched after all tries; `reason` is short, as the fetch log has it."""

    def __init__(self, url: str, reason: str, why: str):
        super().__init__(f"{url}: {why}")
        self.url, self.reason = url, reason


class HttpStatusError(Exception):
    """The server answered with another status than 200 or 206; `retry_after` in seconds, if it said so."""

    def __init__(self, status: int, retry_after: float | None):
        super().__init__(f"status {status}")
        self.status, self.retry_after = status, retry_after


class TransientFetchError(Exception):
    """The connection failed, stalled or ended early. The message says how."""


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """How to ask. `tries`: failures in a row without a new byte before a file is given up; times in seconds."""

    user_agent: str = USER_AGENT
    connections: int = 2
    tries: int = 12
    stall_seconds: float = 60
    first_wait: float = 1
    longest_wait: float = 120


@dataclass(frozen=True, slots=True)
class RangeResponse:
    """A body that begins at byte `start` of a file of `total` bytes (None: not stated)."""

    start: int
    total: int | None
    validator: str
    chunks: Iterator[bytes]


# open_range(url, start, until, validator): bytes `start` to `until` (None: to the end) of the version of the file that
# has this validator; of another version, from its first byte.
OpenRange = Callable[[str, int, int | None, str], RangeResponse]


def range_opener(policy: RequestPolicy) -> OpenRange:
    """A function that requests ranges, for one thread; it raises the errors of this module."""
    import requests

    session = requests.Session()  # honours HTTP_PROXY, HTTPS_PROXY and NO_PROXY, and follows redirects
    session.headers["User-Agent"] = policy.user_agent

    def open_range(url: str, start: int, until: int | None, validator: str) -> RangeResponse:
        if url.startswith(("http://", "https://")):
            return _request_http(session, policy.stall_seconds, url, start, until, validator)
        return _request_store(url, start, until, validator)

    return open_range


def _request_http(
    session: Any, timeout: float, url: str, start: int, until: int | None, validator: str
) -> RangeResponse:
    import requests

    headers = {"Accept-Encoding": "identity"}
    if start or until is not None:
        headers["Range"] = f"bytes={start}-{'' if until is None else until - 1}"
        headers |= {"If-Range": validator} if start else {}
    try:
        response = session.get(url, headers=headers, stream=True, timeout=timeout)
    except requests.RequestException as error:
        raise TransientFetchError(f"the request failed ({type(error).__name__}: {error})") from None
    fields = response.headers
    etag = fields.get("ETag", "")
    found = etag if etag and not etag.startswith("W/") else fields.get("Last-Modified", "")
    if response.status_code == 200:
        length = fields.get("Content-Length", "")
        return RangeResponse(0, int(length) if length.isdigit() else None, found, _http_chunks(response))
    if response.status_code == 206:
        first, total = _content_range(fields.get("Content-Range", ""))
        if first in (0, start):
            return RangeResponse(first, total, found, _http_chunks(response))
        response.close()
        raise TransientFetchError("the server sent another range than the one asked for")
    response.close()
    if response.status_code == 416 and start:  # the file has become shorter
        return RangeResponse(start, None, "changed", iter(()))
    raise HttpStatusError(response.status_code, retry_after(fields.get("Retry-After", "")))


def _content_range(value: str) -> tuple[int, int | None]:
    """`bytes 5-9/100` -> (5, 100); (-1, None) where it cannot be read."""
    span, _, total = value.removeprefix("bytes").strip().partition("/")
    first = span.partition("-")[0]
    return (int(first) if first.isdigit() else -1), (int(total) if total.isdigit() else None)


def retry_after(value: str) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3)."""
    if value.strip().isdigit():
        return float(value)
    when = email.utils.parsedate_tz(value) if value else None
    return max(0.0, email.utils.mktime_tz(when) - time.time()) if when else None


def _http_chunks(response: Any) -> Iterator[bytes]:
    """The body as it comes in, not decompressed. Raises TransientFetchError."""
    import requests
    import urllib3

    with response:
        try:
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                yield chunk
        except (urllib3.exceptions.HTTPError, requests.RequestException, OSError) as error:
            raise TransientFetchError(f"the connection failed ({type(error).__name__}: {error})") from None


def _request_store(url: str, start: int, until: int | None, validator: str) -> RangeResponse:
    """The same from an object store (S3 needs the extra `s3`) or any other file system that fsspec knows."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        info = system.info(path)
    except FileNotFoundError:
        raise HttpStatusError(404, None) from None
    except ImportError as error:
        why = f"{error} For s3:// install the extra: pip install -e '.[s3]'"
        raise PermanentFetchError(url, "no client", why) from None
    except OSError as error:
        if not isinstance(error, PermissionError):
            _raise_store_error(error)
        raise _no_access(url, error) from None
    except Exception as error:  # each store refuses access with an exception of its own; the message holds it
        raise _no_access(url, error) from None
    validators = (info.get(name) for name in ("ETag", "etag", "LastModified", "mtime", "created"))
    found, total = str(next((value for value in validators if value), "")), info["size"]
    start = start if found == validator else 0
    end = total if until is None else min(until, total)
    return RangeResponse(start, total, found, _store_chunks(system, path, start, end))


def _store_chunks(system: Any, path: str, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, STORE_CHUNK):
        try:
            yield system.cat_file(path, start=at, end=min(at + STORE_CHUNK, end))
        except OSError as error:
            _raise_store_error(error)


def _raise_store_error(error: OSError) -> NoReturn:
    """What may succeed on another try; EBUSY is how s3fs reports SlowDown (503)."""
    if error.errno == errno.EBUSY:
        raise HttpStatusError(503, None) from None
    raise TransientFetchError(f"the connection failed ({type(error).__name__}: {error})") from None


def _no_access(url: str, error: Exception) -> PermanentFetchError:
    why = f"the store denies access ({type(error).__name__}: {error}); s3://commoncrawl wants an AWS account"
    return PermanentFetchError(url, "no access", why)
