"""Read WARC, ARC and WET: every record of a crawl file, each of which gets a row in the ledger.

Notable: a record is either a `Record` (a page, or what is in a page's place: redirect, revisit, image,
log) or a `BrokenRecord` with a rule; nothing is skipped silently, nothing raises but the opening and reading
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

from core.errors import DataError
from corpus.http import BadBody, parse_response, split_content_type
from corpus.raw_records import FAULTS, NOT_PAGES, RawRecord, read_next, read_whole_member
from corpus.stream import ArchiveStream, open_archive

MAX_BYTES = 64 << 20  # of a record, packed or unpacked; Common Crawl cuts pages at 1 to 5 MiB
MANY_SLOW = 16  # members in a row that the fast path could not read, after which the file is read without it
HTML_TYPES = frozenset({"text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml"})
HTML_START = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*(?><!--.*?-->\s*)*<(?:!doctype\s+html|html)", re.I | re.S)


@dataclass(frozen=True, slots=True)
class Record:
    """One record in a page's place. `payload` is unpacked; offset and length are bytes in the file as stored.

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


class RecordNotFound(DataError, LookupError):
    """A byte range of a file does not hold the record that it held when the file was read."""


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

    Raises RecordNotFound where the range holds no such record: the file is not the one that was read. Raises OSError.
    """
    with open_archive(path_or_url) as file:
        file.seek(offset)
        stored = BytesIO(file.read(length))
    wanted = record_id and record_id.partition("#")[0]
    for record in _records(ArchiveStream(stored, offset), name, Counter(), MAX_BYTES):
        if record.warc_length and wanted in (None, record.record_id):
            return record
    raise RecordNotFound(
        f"{name}: no record {record_id or ''} in bytes {offset:,} to {offset + length:,}. The file has "
        "changed since it was read; fetch the crawl again or re-run its cleaning."
    )


def _records(
    stream: ArchiveStream, name: str, counts: Counter[str], limit: int
) -> Iterator[Record | BrokenRecord]:
    pages, start, index = 0, -1, 0
    ids: Counter[str] = Counter()
    slow = 0  # members in a row that were not one intact record
    while True:
        raw = read_whole_member(stream, limit) if slow < MANY_SLOW else None
        slow = 0 if raw else slow + 1
        if raw is None:
            stream.skip_blank()
        if raw is None and stream.at_end() and not (stream.fault and stream.offset() != start):
            if stream.next_member():
                continue
            break
        index = index + 1 if stream.offset() == start else 0
        start = stream.offset()
        raw = raw or read_next(stream, limit)
        if stream.fault and stream.at_end():
            raw.rule = raw.rule or stream.fault
            raw.detail = raw.detail or FAULTS[stream.fault]
        counts[raw.warc_type or "broken"] += 1
        if raw.warc_type in NOT_PAGES and raw.rule in ("", "bad_length"):
            continue
        pages += 1
        # No id (ARC, broken header): the record is named by its position. Repeated ids in a file get a number.
        urn = raw.record_id or f"urn:stemma:{name}:{start}" + (f".{index}" if index else "")
        ids[urn] += 1
        urn += f"#{ids[urn]}" if ids[urn] > 1 else ""
        yield _interpret(raw, urn, name, start, stream.end() - start, limit)
    if not pages:
        what = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "no records"
        detail = f"The file holds no page ({what}); a WAT file, for one, describes pages and holds none."
        yield BrokenRecord(f"urn:stemma:{name}", "", name, 0, 0, "no_pages", detail)


def _interpret(
    raw: RawRecord, record_id: str, name: str, offset: int, length: int, limit: int
) -> Record | BrokenRecord:
    """Check the block against its digest, parse the HTTP response, and classify the record."""
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


def _check_digest(raw: RawRecord) -> None:
    """Compare the block with its WARC-Block-Digest (base32 as in the standard, or hex)."""
    algorithm, _, value = raw.digest.partition(":")
    algorithm = algorithm.lower().replace("-", "")
    if algorithm not in ("sha1", "sha256", "sha512", "md5"):
        return
    digest = hashlib.new(algorithm, raw.block, usedforsecurity=False).digest()
    if value.lower() not in (digest.hex(), base64.b32encode(digest).decode().lower()):
        raise BadBody("bad_digest", f"The block is not what its {algorithm} digest says; its bytes changed.")
