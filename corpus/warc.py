"""Every record of a crawl file, as something that gets a row in the ledger: read WARC, ARC and WET.

Notable: a record is either a `Record` (a page, or what stands in a page's place: redirect, revisit, image,
log) or a `BrokenRecord` with a rule; nothing is skipped in silence, nothing raises but the opening and reading
of the file itself. Records that only describe others (warcinfo, request, metadata, ARC's filedesc) are not
pages: they are counted by type in `counts`. A file without any page gives one BrokenRecord `no_pages`.
Sources: WARC 1.1 (IIPC), ARC 1.0 (archive.org), RFC 9110 and 9112.
"""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from corpus.http import BadBody, is_whole, parse_headers, parse_response, split_content_type
from corpus.stream import ARC_HEADER, BOMB_BYTES, BOMB_RATIO, MAX_LINE, ArchiveStream, starts_record

MAX_BYTES = 64 << 20  # of a record, packed or unpacked; Common Crawl cuts pages at 1 to 5 MiB
MAX_HEADER = 64 << 10  # bytes of WARC header lines of one record
# Members in a row of another form, after which a file's members are not tried in one go any more.
MANY_SLOW = 16
NOT_PAGES = frozenset({"warcinfo", "request", "metadata", "filedesc"})
HTML_TYPES = frozenset({"text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml"})
HTML_START = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*(?><!--.*?-->\s*)*<(?:!doctype\s+html|html)", re.I | re.S)


@dataclass(frozen=True, slots=True)
class Record:
    """One record that stands in a page's place. `payload` is unpacked; offset and length are bytes in the
    file as stored.

    `kind` is "html", "text" (a WET conversion record or a text/plain page), "revisit" or "other"; `warc_type`
    is the record's own type. `status` is None where there was no HTTP response (resource, conversion).
    """

    record_id: str
    url: str
    date: str
    status: int | None
    content_type: str
    http_charset: str | None
    payload: bytes
    warc_file: str
    warc_offset: int
    warc_length: int
    kind: str
    warc_type: str = "response"


@dataclass(frozen=True, slots=True)
class BrokenRecord:
    """A record that cannot be read. `rule` is one of: truncated, corrupt_gzip, compression_bomb, too_large, bad_length,
    bad_digest, bad_http, bad_encoding, not_a_record, no_pages; `detail` is a sentence."""

    record_id: str
    url: str
    warc_file: str
    warc_offset: int
    warc_length: int
    rule: str
    detail: str


@dataclass(slots=True)
class _Raw:
    """A record before its block is understood: header fields and block, or the rule that it broke."""

    warc_type: str
    record_id: str
    url: str
    date: str
    content_type: str
    digest: str = ""
    identified: str = ""
    block: bytes = b""
    rule: str = ""
    detail: str = ""


def open_archive(path_or_url: str | Path) -> BinaryIO:
    """The file's stored bytes, seekable; local or any fsspec URL."""
    if "://" not in str(path_or_url):
        return open(path_or_url, "rb")
    import fsspec

    return fsspec.open(str(path_or_url), "rb", compression=None).open()


def read_records(
    path_or_url: str | Path, name: str, counts: Counter[str] | None = None, limit: int = MAX_BYTES
) -> Iterator[Record | BrokenRecord]:
    """Every page-like record of one WARC, ARC or WET file, in file order; `name` goes into `warc_file`.

    `counts`, if given, is filled with the number of records by WARC type ("broken" for those without a
    readable type), those that are not pages included. Raises OSError where the file cannot be opened or read.
    """
    counts = Counter() if counts is None else counts
    with open_archive(path_or_url) as file:
        yield from _records(ArchiveStream(file), name, counts, limit)


def fetch_record(
    path_or_url: str | Path, name: str, offset: int, length: int, record_id: str | None = None
) -> Record | BrokenRecord:
    """The record in a byte range of the file (the one called `record_id` where a gzip member holds several).

    Raises LookupError where the range holds no such record: the file is not the one that was read.
    """
    with open_archive(path_or_url) as file:
        file.seek(offset)
        stored = BytesIO(file.read(length))
    wanted = record_id and record_id.partition("#")[0]
    for record in _records(ArchiveStream(stored, offset), name, Counter(), MAX_BYTES):
        if record.warc_length and wanted in (None, record.record_id):
            return record
    raise LookupError(
        f"{name}: no record {record_id or ''} in bytes {offset:,} to {offset + length:,}. The file has "
        "changed since it was read; fetch the crawl again or re-run its cleaning."
    )


def _records(
    stream: ArchiveStream, name: str, counts: Counter[str], limit: int
) -> Iterator[Record | BrokenRecord]:
    pages, start, index, ids = 0, -1, 0, Counter()
    slow = 0  # members in a row that were not one healthy record
    while True:
        raw = _healthy(stream, limit) if slow < MANY_SLOW else None
        slow = 0 if raw else slow + 1
        if raw is None:
            stream.skip_blank()
        if raw is None and stream.at_end() and not (stream.fault and stream.offset() != start):
            if stream.next_member():
                continue
            break
        index = index + 1 if stream.offset() == start else 0
        start = stream.offset()
        raw = raw or _read_raw(stream, limit)
        if stream.fault and stream.at_end():
            raw.rule = raw.rule or stream.fault
            raw.detail = raw.detail or FAULTS[stream.fault]
        counts[raw.warc_type or "broken"] += 1
        if raw.warc_type in NOT_PAGES and raw.rule in ("", "bad_length"):
            continue
        pages += 1
        # No id (ARC, broken header): the record's place names it. An id used twice in a file is told apart.
        urn = raw.record_id or f"urn:stemma:{name}:{start}" + (f".{index}" if index else "")
        ids[urn] += 1
        urn += f"#{ids[urn]}" if ids[urn] > 1 else ""
        yield _understand(raw, urn, name, start, stream.end() - start, limit)
    if not pages:
        what = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "no records"
        detail = f"The file holds no page ({what}); a WAT file, for one, describes pages and holds none."
        yield BrokenRecord(f"urn:stemma:{name}", "", name, 0, 0, "no_pages", detail)


FAULTS = {
    "truncated": "The file ends inside this record (gzip); what came before it is kept.",
    "corrupt_gzip": "The compressed bytes of this record are damaged; reading goes on at the next member.",
    "compression_bomb": f"The gzip member unpacks to more than {BOMB_BYTES:,} bytes and {BOMB_RATIO} times its size; "
    "reading goes on at the next member.",
}


def _healthy(stream: ArchiveStream, limit: int) -> _Raw | None:
    """The record of a gzip member that holds one record and nothing else, in the way most files are written.

    None, with nothing taken, for any other: the way below then finds out what it is.
    """
    at = stream.offset()
    member = stream.whole_member(limit + 2 * MAX_HEADER)
    if member is None:
        return None
    end = member.find(b"\r\n\r\n", 0, MAX_HEADER)
    fields = _plain_fields(member[:end]) if end > 0 and member.startswith(b"WARC/") else None
    length = fields.get("content-length", "") if fields else ""
    size, body = int(length) if length.isascii() and length.isdigit() else -1, end + 4
    if not 0 <= size <= min(limit, len(member) - body) or member[body + size :].strip(b"\r\n"):
        stream.reopen(at - stream.base)
        return None
    raw = _raw_of(fields)
    if raw.warc_type not in NOT_PAGES:
        raw.block = member[body : body + size]
    return raw


def _plain_fields(head: bytes) -> dict[str, str] | None:
    """As parse_headers after the first line, where nothing in the header is unusual; else None."""
    try:
        lines = head.decode("utf-8").split("\r\n")
    except UnicodeDecodeError:
        return None
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or name[:1] in " \t" or "\n" in line:
            return None
        fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _read_raw(stream: ArchiveStream, limit: int) -> _Raw:
    """Take one record and all that follows it up to the next record's start."""
    line = stream.peek_line(MAX_LINE)
    if line.startswith(b"WARC/"):
        raw, size = _warc_header(stream)
    elif arc := ARC_HEADER.fullmatch(line):
        stream.take(len(line))
        raw, size = _arc_header(arc)
    else:
        _to_next_record(stream, 0)
        if stream.fault:
            return _Raw("", "", "", "", "", rule=stream.fault, detail=FAULTS[stream.fault])
        return _Raw("", "", "", "", "", rule="not_a_record", detail="No WARC or ARC record starts here.")
    if size is None:
        _to_next_record(stream, 0)
        raw.rule = "bad_length"
        raw.detail = "The record does not say how long it is (no valid Content-Length or ARC length)."
        return raw
    if size > limit:
        stream.skip(size)
        _to_next_record(stream, 0)
        raw.rule, raw.detail = "too_large", f"The record holds {size:,} bytes, more than {limit:,}."
        return raw
    raw.block = stream.take(size)
    while len(raw.block) < size and not stream.fault and stream.continue_member():
        raw.block += stream.take(size - len(raw.block))
    tail = _to_next_record(stream, limit)
    stray = bool(tail.strip(b"\r\n"))
    if stray or len(raw.block) < size:
        _mend_length(stream, raw, size, tail)
    return raw


SWALLOWED = re.compile(rb"\r?\n\r?\n(?=WARC/1\.[01]\r?\n)")


def _mend_length(stream: ArchiveStream, raw: _Raw, size: int, tail: bytes) -> None:
    """Its length was wrong, or the file ended: give back swallowed records, or add the stray end."""
    swallowed = SWALLOWED.search(raw.block)
    if swallowed:
        stream.give_back(raw.block[swallowed.end() :] + tail)
        raw.rule = "bad_length"
        raw.detail = f"The record claims {size:,} bytes and would swallow the records behind it."
    elif len(raw.block) < size and not stream.fault and is_whole(raw.block):
        pass  # line ends were rewritten after the length was: all of the page is here
    elif len(raw.block) < size:
        raw.rule = stream.fault or "truncated"
        raw.detail = f"The record claims {size:,} bytes and has {len(raw.block):,}; " + (
            "the file is damaged here." if stream.fault == "corrupt_gzip" else "it was cut short."
        )
    else:  # a length too small by some bytes: the page goes on to where the next record starts
        raw.block += tail.removesuffix(b"\r\n\r\n")


def _to_next_record(stream: ArchiveStream, limit: int) -> bytes:
    """Take all up to a line that starts a record, or the member's end; gives the first `limit` bytes of it."""
    tail = bytearray()
    line_start = True
    while line := stream.peek_line(MAX_LINE):
        if line_start and starts_record(line):
            break
        line_start = line.endswith(b"\n")
        taken = stream.take(len(line)) + _lines_at_once(stream, line_start)
        tail += taken[: max(limit - len(tail), 0)]
    return bytes(tail)


MAYBE_RECORD = re.compile(rb"WARC/|\d \d{8,20} ")  # in every line that starts a record, and in few others


def _lines_at_once(stream: ArchiveStream, line_start: bool) -> bytes:
    """Take the lines that are at hand where none of them can start a record: one by one takes minutes of a bomb."""
    block = stream.at_hand() if line_start else b""
    return b"" if MAYBE_RECORD.search(block) else stream.take(block.rfind(b"\n") + 1)


def _warc_header(stream: ArchiveStream) -> tuple[_Raw, int | None]:
    """The header of a WARC record and the length of its block, in bytes."""
    lines = bytearray()
    while (line := stream.take(len(stream.peek_line(MAX_HEADER)))).strip() and len(lines) < MAX_HEADER:
        lines += line
    fields = parse_headers(bytes(lines[lines.find(b"\n") + 1 :]))
    length = fields.get("content-length", "")
    return _raw_of(fields), int(length) if length.isascii() and length.isdigit() else None


def _raw_of(fields: dict[str, str]) -> _Raw:
    url = fields.get("warc-target-uri", "")
    return _Raw(
        warc_type=fields.get("warc-type", "").lower(),
        record_id=fields.get("warc-record-id", "").strip("<>"),
        url=url[1:-1] if url[:1] + url[-1:] == "<>" else url,  # WARC 1.0 puts it in angle brackets
        date=fields.get("warc-date", ""),
        content_type=fields.get("content-type", ""),
        digest=fields.get("warc-block-digest", ""),
        identified=fields.get("warc-identified-payload-type", ""),
    )


def _arc_header(line: re.Match[bytes]) -> tuple[_Raw, int | None]:
    """The header line of an ARC record and the length of what follows, in bytes."""
    url, _, date, content_type, length = (field.decode("utf-8", "replace") for field in line.groups())
    date = date.ljust(14, "0")
    when = f"{date[:4]}-{date[4:6]}-{date[6:8]}T{date[8:10]}:{date[10:12]}:{date[12:14]}Z"
    warc_type = "filedesc" if url.startswith("filedesc:") else "response"
    raw = _Raw(warc_type, "", url, when, content_type)
    return raw, int(length) if length.isascii() and length.isdigit() else None


def _understand(
    raw: _Raw, record_id: str, name: str, offset: int, length: int, limit: int
) -> Record | BrokenRecord:
    """Check the block against its digest, take the HTTP response apart, and say what the record is."""
    place = (name, offset, length)
    try:
        if raw.rule:
            raise BadBody(raw.rule, raw.detail)
        _check_digest(raw)
        status, charset, payload = None, None, raw.block
        content_type, charset = split_content_type(raw.content_type)
        if raw.warc_type in ("response", "revisit"):
            response = parse_response(raw.block, limit)
            if response:
                status, payload = response.status, response.body
                content_type, charset = response.content_type, response.charset
            elif content_type.startswith("application/http") and raw.warc_type == "response":
                raise BadBody("bad_http", "The record claims an HTTP response and holds no status line.")
    except BadBody as broken:
        return BrokenRecord(record_id, raw.url, *place, broken.rule, str(broken))
    content_type = content_type or raw.identified.lower()
    kind = _kind(raw.warc_type, content_type, payload)
    return Record(
        record_id, raw.url, raw.date, status, content_type, charset, payload, *place, kind, raw.warc_type
    )


def _kind(warc_type: str, content_type: str, payload: bytes) -> str:
    if warc_type == "revisit":
        return "revisit"
    if content_type in HTML_TYPES or (not content_type and HTML_START.match(payload[:1024])):
        return "html"
    return "text" if warc_type == "conversion" or content_type == "text/plain" else "other"


def _check_digest(raw: _Raw) -> None:
    """Compare the block with its WARC-Block-Digest (base32 as in the standard, or hex)."""
    algorithm, _, value = raw.digest.partition(":")
    algorithm = algorithm.lower().replace("-", "")
    if algorithm not in ("sha1", "sha256", "sha512", "md5"):
        return
    digest = hashlib.new(algorithm, raw.block, usedforsecurity=False).digest()
    if value.lower() not in (digest.hex(), base64.b32encode(digest).decode().lower()):
        raise BadBody("bad_digest", f"The block is not what its {algorithm} digest says; its bytes changed.")
