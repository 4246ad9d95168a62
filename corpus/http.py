"""Parse an HTTP response as a crawler stored it: status, content type, charset, and the unpacked body.

Notable: lenient where stored responses are often malformed (headers that say chunked or gzip for a body that is
neither, no status text, bare line feeds), strict about size: no body grows beyond `limit` bytes, however it is packed.
Source: RFC 9110 and 9112.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})(?:[ \t].*)?\s*")
BLANK_LINE = re.compile(rb"\r?\n\r?\n")
CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:+-]+)", re.IGNORECASE)
CHUNK_SIZE = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
MAX_HEAD = 64 << 10  # bytes of HTTP header that are looked at
MAX_CODINGS = 4  # content codings on top of each other; servers use one
MAGIC = {
    "gzip": b"\x1f\x8b",
    "zstd": b"\x28\xb5\x2f\xfd",
}  # first bytes, without which a body is not packed so


class BadBody(ValueError):
    """A body that cannot be unpacked; `rule` names why (`bad_encoding`, `too_large`)."""

    def __init__(self, rule: str, detail: str):
        super().__init__(detail)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Response:
    """A parsed response: `content_type` is lower case without parameters, `body` is unpacked."""

    status: int
    content_type: str
    charset: str | None
    body: bytes


def parse_headers(lines: bytes) -> dict[str, str]:
    """Header fields by lower-case name; a repeated field keeps its first value, folded lines are joined."""
    fields: dict[str, str] = {}
    last = ""
    try:
        texts = lines.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        texts = [decode_header(line) for line in lines.split(b"\n")]
    for text in texts:
        text = text.rstrip("\r")
        if text[:1] in (" ", "\t") and last:
            fields[last] += " " + text.strip()
            continue
        name, colon, value = text.partition(":")
        if colon:
            last = name.strip().lower()
            fields.setdefault(last, value.strip())
    return fields


def decode_header(value: bytes) -> str:
    """Header bytes as text: UTF-8, or where they are not that, Latin-1 (RFC 9110, section 5.5)."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def split_content_type(value: str) -> tuple[str, str | None]:
    """`Text/HTML; charset="UTF-8"` -> (`text/html`, `utf-8`)."""
    media, _, parameters = value.partition(";")
    charset = CHARSET.search(parameters)
    return media.strip().lower(), charset.group(1).lower() if charset else None


def parse_response(block: bytes, limit: int) -> Response | None:
    """The response in a record's block, or None where it does not start with a status line.

    Raises BadBody where the body cannot be unpacked or would exceed `limit` bytes.
    """
    line_end = block.find(b"\n")
    line = block[: line_end + 1] if line_end >= 0 else block
    status = STATUS_LINE.fullmatch(line)
    if status is None:
        return None
    blank = BLANK_LINE.search(block)
    head, body = (block, b"") if blank is None else (block[: blank.start()], block[blank.end() :])
    fields = parse_headers(head[len(line) : MAX_HEAD])
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = unchunk(body)
    codings = [coding.strip().lower() for coding in fields.get("content-encoding", "").split(",")]
    if len(codings) > MAX_CODINGS:
        raise BadBody("bad_encoding", f"claims {len(codings):,} content codings")
    for coding in reversed(codings):
        body = unpack(body, coding, limit)
    media, charset = split_content_type(fields.get("content-type", ""))
    return Response(int(status.group(1)), media, charset, body)


def is_whole(block: bytes) -> bool:
    """Whether a response has all the bytes that its own Content-Length promises."""
    blank = BLANK_LINE.search(block)
    if not block.startswith(b"HTTP/") or blank is None:
        return False
    length = parse_headers(block[: min(blank.start(), MAX_HEAD)]).get("content-length", "")
    return length.isascii() and length.isdigit() and len(block) - blank.end() >= int(length)


def unchunk(body: bytes) -> bytes:
    """Join the chunks of RFC 9112, section 7.1; what is not chunked (any more) stays unchanged."""
    parts: list[bytes] = []
    at = 0
    while at < len(body):
        header = CHUNK_SIZE.match(body, at)
        if header is None:
            parts.append(body[at:])
            break
        size = int(header.group(1), 16)
        if size == 0:
            break
        parts.append(body[header.end() : header.end() + size])
        at = header.end() + size
        at += 2 if body[at : at + 2] == b"\r\n" else int(body[at : at + 1] == b"\n")
    return b"".join(parts)


def unpack(body: bytes, coding: str, limit: int) -> bytes:
    """Undo one content coding; an unknown one, or one that the body plainly is not in, changes nothing.

    Raises BadBody for a body that does not unpack or has more than `limit` bytes then.
    """
    coding = {"x-gzip": "gzip", "x-deflate": "deflate"}.get(coding, coding)
    unpacker = UNPACKERS.get(coding)
    if unpacker is None or not body or not body.startswith(MAGIC.get(coding, b"")):
        return body
    data = unpacker(body, limit)
    if len(data) > limit:
        raise BadBody("too_large", f"unpacks ({coding}) to more than {limit:,} bytes")
    return data


def _inflate(body: bytes, limit: int, wbits: int = 31) -> bytes:
    """Gzip or zlib; a stream that ends early gives what it holds."""
    out, at, window, began = bytearray(), 0, 0, 0
    stream = zlib.decompressobj(wbits)
    while at < len(body) and len(out) <= limit:
        if (
            stream.eof
        ):  # another member follows; the window is small again, or many small members cost many copies
            stream, window, began = zlib.decompressobj(wbits), 0, len(out)
        window = min(max(2 * window, 1 << 10), 1 << 20)
        piece = body[at : at + window]
        try:
            out += stream.decompress(piece, limit + 1 - len(out))
        except zlib.error as error:
            if began:
                del out[began:]  # bytes after the stream are padding, or a damaged member
                break
            raise BadBody("bad_encoding", f"body does not decompress: {error}") from error
        at += len(piece) - len(stream.unused_data or stream.unconsumed_tail)
    return bytes(out)


def _deflate(body: bytes, limit: int) -> bytes:
    try:
        return _inflate(body, limit, zlib.MAX_WBITS)
    except BadBody:
        try:
            return _inflate(body, limit, -zlib.MAX_WBITS)  # raw, as some servers send it
        except BadBody:
            return _already_unpacked(body, "deflate")


def _brotli(body: bytes, limit: int) -> bytes:
    """By FastWARC's reader, which reports a body that is cut short and ignores bytes after it: docs/dependencies.md."""
    from fastwarc.stream_io import BrotliReader

    try:
        return BrotliReader(BytesIO(body)).read(limit + 1)
    except OSError:  # brotli has no magic bytes to look at first
        return _already_unpacked(body, "br")


def _zstd(body: bytes, limit: int) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(body) as stream:
            return stream.read(limit + 1)
    except zstandard.ZstdError as error:
        raise BadBody("bad_encoding", f"body does not decompress: {error}") from error


def _already_unpacked(body: bytes, coding: str) -> bytes:
    """A body that a crawler stored already unpacked under its old header, else BadBody."""
    if body.lstrip()[:1] in (b"<", b"{"):
        return body
    raise BadBody("bad_encoding", f"body does not decompress as {coding}")


UNPACKERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _inflate,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
