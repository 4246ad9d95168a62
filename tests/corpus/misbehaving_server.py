"""A local HTTP server with scripted faults: files by path, and for each request of one what goes wrong with it."""

import contextlib
import email.utils
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Fault:
    """What to do instead of a normal response. `cut`: bytes of the body after which the connection ends;
    `stall`: seconds to do nothing in after them; `trickle`: send one byte each so many seconds from there on."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    stall: float = 0
    trickle: float = 0
    length: int | None = None  # the Content-Length that it states
    body: bytes | None = None
    no_range: bool = False
    etag: str | None = None


@dataclass
class Server:
    """`faults[path]`: one for each request, in order (the last of them for good if it is in `forever`)."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    forever: set[str] = field(default_factory=set)
    etags: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str], float]] = field(default_factory=list)
    at_once: int = 0  # the most requests that were in progress together
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: int = 0

    def seen(self, path: str) -> list[dict[str, str]]:
        """The headers of every request for a path, in order, names in lower case."""
        return [headers for asked, headers, _ in self.requests if asked == path]

    def times(self, path: str) -> list[float]:
        return [when for asked, _, when in self.requests if asked == path]

    def next_fault(self, path: str) -> Fault:
        faults = self.faults.get(path, [])
        with self._lock:
            if not faults:
                return Fault()
            return faults[0] if len(faults) == 1 and path in self.forever else faults.pop(0)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._open += 1
            self.at_once = max(self.at_once, self._open)
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1


@contextlib.contextmanager
def serving(host: str = "127.0.0.1", **start) -> Iterator[Server]:
    """A Server on a free port of a loopback address."""
    server = Server(**start)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def do_GET(self) -> None:
            with server.counted(), contextlib.suppress(ConnectionError):
                answer(server, self)

    http = ThreadingHTTPServer((host, 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://{host}:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def answer(server: Server, request: BaseHTTPRequestHandler) -> None:
    headers = {name.lower(): value for name, value in request.headers.items()}
    server.requests.append((request.path, headers, time.monotonic()))
    fault = server.next_fault(request.path)
    data = server.files.get(request.path)
    etag = fault.etag or server.etags.get(request.path, f'"{request.path}"')
    if fault.status or data is None:
        body, status, more = fault.body or b"", fault.status or 404, dict(fault.headers)
    else:
        body, status, more = ranged(data if fault.body is None else fault.body, headers, etag, fault)
        more |= {"ETag": etag, **fault.headers}
    if fault.cut is not None or fault.length is not None:
        request.close_connection = True
    request.send_response(status)
    for name, value in {"Content-Length": str(fault.length or len(body)), **more}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body[: fault.cut])
    request.wfile.flush()
    time.sleep(fault.stall)
    if fault.trickle:
        for at in range(fault.cut or 0, len(body)):
            request.wfile.write(body[at : at + 1])
            time.sleep(fault.trickle)


def ranged(
    data: bytes, headers: dict[str, str], etag: str, fault: Fault
) -> tuple[bytes, int, dict[str, str]]:
    """A part of the file, according to RFC 9110: If-Range with another validator gets all of it."""
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
    if wanted is None or fault.no_range or headers.get("if-range", etag) != etag:
        return data, 200, {}
    first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
    if first >= len(data):
        return b"", 416, {"Content-Range": f"bytes */{len(data)}"}
    return data[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}


def in_seconds(seconds: float) -> str:
    """An HTTP date that many seconds from now."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)
