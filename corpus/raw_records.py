"""One record after another from an archive stream: header fields and block as stored, or the rule that it breaks.

Notable: wrong lengths are repaired where the record shows it itself: a length that would swallow the records behind
it, one that is some bytes too small, line ends rewritten after the length was. `read_whole_member` is the fast path
for the usual layout, a gzip member that holds one intact record; `read_next` handles everything else, to the same
results. Sources: WARC 1.1 (IIPC), ARC 1.0 (archive.org).
"""

import re
from dataclasses import dataclass

from corpus.http import is_whole, parse_headers
from corpus.stream import ARC_HEADER, BOMB_BYTES, BOMB_RATIO, MAX_LINE, ArchiveStream, starts_record

MAX_HEADER = 64 << 10  # bytes of WARC header lines of one record
NOT_PAGES = frozenset({"warcinfo", "request", "metadata", "filedesc"})
SWALLOWED = re.compile(rb"\r?\n\r?\n(?=WARC/1\.[01]\r?\n)")
MAYBE_RECORD = re.compile(rb"WARC/|\d \d{8,20} ")  # matches every line that starts a record, and few others
FAULTS = {
    "truncated": "The file ends inside this record (gzip); what came before it is kept.",
    "corrupt_gzip": "The compressed bytes of this record are damaged; reading goes on at the next member.",
    "compression_bomb": f"The gzip member unpacks to more than {BOMB_BYTES:,} bytes and {BOMB_RATIO} times its size; "
    "reading goes on at the next member.",
}


@dataclass(slots=True)
class RawRecord:
    """A record before its block is parsed: header fields and block, or the rule that it breaks (see BrokenRecord)."""

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


def read_whole_member(stream: ArchiveStream, limit: int) -> RawRecord | None:
    """The record of a gzip member that holds one intact record and nothing else, as in most files.

    None, with nothing taken, for any other: `read_next` then finds out what it is.
    """
    at = stream.offset()
    member = stream.whole_member(limit + 2 * MAX_HEADER)
    if member is None:
        return None
    end = member.find(b"\r\n\r\n", 0, MAX_HEADER)
    fields = _plain_fields(member[:end]) if end > 0 and member.startswith(b"WARC/") else None
    length = fields.get("content-length", "") if fields else ""
    size, body = int(length) if length.isascii() and length.isdigit() else -1, end + 4
    fits = 0 <= size <= min(limit, len(member) - body) and not member[body + size :].strip(b"\r\n")
    if fields is None or not fits:
        stream.reopen(at - stream.base)
        return None
    raw = _raw_of(fields)
    if raw.warc_type not in NOT_PAGES:
        raw.block = member[body : body + size]
    return raw


def _plain_fields(head: bytes) -> dict[str, str] | None:
    """The same as parse_headers gives after the first line, or None where the header has an unusual form."""
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


def read_next(stream: ArchiveStream, limit: int) -> RawRecord:
    """Take one record and everything after it up to the next record's start."""
    line = stream.peek_line(MAX_LINE)
    if line.startswith(b"WARC/"):
        raw, size = _warc_header(stream)
    elif arc := ARC_HEADER.fullmatch(line):
        stream.take(len(line))
        raw, size = _arc_header(arc)
    else:
        _to_next_record(stream, 0)
        if stream.fault:
            return RawRecord("", "", "", "", "", rule=stream.fault, detail=FAULTS[stream.fault])
        return RawRecord("", "", "", "", "", rule="not_a_record", detail="No WARC or ARC record starts here.")
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
        _repair_length(stream, raw, size, tail)
    return raw


def _repair_length(stream: ArchiveStream, raw: RawRecord, size: int, tail: bytes) -> None:
    """The length was wrong, or the file ended: put back swallowed records, or add the rest of the page."""
    swallowed = SWALLOWED.search(raw.block)
    if swallowed:
        stream.push_back(raw.block[swallowed.end() :] + tail)
        raw.rule = "bad_length"
        raw.detail = f"The record claims {size:,} bytes and would swallow the records behind it."
    elif len(raw.block) < size and not stream.fault and is_whole(raw.block):
        pass  # line ends were rewritten after the length was written: the page is complete
    elif len(raw.block) < size:
        raw.rule = stream.fault or "truncated"
        raw.detail = f"The record claims {size:,} bytes and has {len(raw.block):,}; " + (
            "the file is damaged here." if stream.fault == "corrupt_gzip" else "it was cut short."
        )
    else:  # a length too small by some bytes: the page continues to where the next record starts
        raw.block += tail.removesuffix(b"\r\n\r\n")


def _to_next_record(stream: ArchiveStream, limit: int) -> bytes:
    """Take all up to a line that starts a record, or the member's end; returns the first `limit` bytes of it."""
    tail = bytearray()
    line_start = True
    while line := stream.peek_line(MAX_LINE):
        if line_start and starts_record(line):
            break
        line_start = line.endswith(b"\n")
        taken = stream.take(len(line)) + _lines_at_once(stream, line_start)
        tail += taken[: max(limit - len(tail), 0)]
    return bytes(tail)


def _lines_at_once(stream: ArchiveStream, line_start: bool) -> bytes:
    """Take all buffered lines if none of them can start a record: one by one, a bomb would take minutes."""
    block = stream.buffered() if line_start else b""
    return b"" if MAYBE_RECORD.search(block) else stream.take(block.rfind(b"\n") + 1)


def _warc_header(stream: ArchiveStream) -> tuple[RawRecord, int | None]:
    """The header of a WARC record and the length of its block, in bytes."""
    lines = bytearray()
    while (line := stream.take(len(stream.peek_line(MAX_HEADER)))).strip() and len(lines) < MAX_HEADER:
        lines += line
    fields = parse_headers(bytes(lines[lines.find(b"\n") + 1 :]))
    length = fields.get("content-length", "")
    return _raw_of(fields), int(length) if length.isascii() and length.isdigit() else None


def _raw_of(fields: dict[str, str]) -> RawRecord:
    url = fields.get("warc-target-uri", "")
    return RawRecord(
        warc_type=fields.get("warc-type", "").lower(),
        record_id=fields.get("warc-record-id", "").strip("<>"),
        url=url[1:-1] if url[:1] + url[-1:] == "<>" else url,  # WARC 1.0 writes <uri>
        date=fields.get("warc-date", ""),
        content_type=fields.get("content-type", ""),
        digest=fields.get("warc-block-digest", ""),
        identified=fields.get("warc-identified-payload-type", ""),
    )


def _arc_header(line: re.Match[bytes]) -> tuple[RawRecord, int | None]:
    """The header line of an ARC record and the length of what follows, in bytes."""
    url, _, date, content_type, length = (field.decode("utf-8", "replace") for field in line.groups())
    date = date.ljust(14, "0")
    when = f"{date[:4]}-{date[4:6]}-{date[6:8]}T{date[8:10]}:{date[10:12]}:{date[12:14]}Z"
    warc_type = "filedesc" if url.startswith("filedesc:") else "response"
    raw = RawRecord(warc_type, "", url, when, content_type)
    return raw, int(length) if length.isascii() and length.isdigit() else None
