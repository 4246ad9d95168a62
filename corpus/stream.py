"""The bytes of a WARC or ARC file, gzip or not, read by a stream that always knows its position in the file.

Notable: a record's position is a byte range of the file *as stored*, so that it can be fetched again alone.
In a file with one gzip member a record (the rule) that range is the member. In a file that is one long member
it runs from the member's start to the last compressed byte that the record needed. A member that ends early
or does not decompress sets `fault`, and reading continues at the next place that looks like a member: nothing
before or after it is lost. (FastWARC, with which the tests compare, ends there: docs/dependencies.md.) An intact
member is unpacked in one go by ISA-L, in half of zlib's time; any other incrementally, by zlib.
"""

import hashlib
import os
import re
import zlib
from pathlib import Path
from typing import BinaryIO

from isal import isal_zlib

from core.hashing import file_sha256

ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # the stub calls it an instance
GZIP_MAGIC = b"\x1f\x8b\x08"  # RFC 1952: ID1, ID2, CM = deflate
# A member is a bomb if it unpacks to more bytes than this, and to more than so many times its size.
BOMB_BYTES, BOMB_RATIO = 256 << 20, 100
CHUNK = 1 << 16  # bytes read from the file, and decompressed, at a time
MAX_LINE = 1 << 13  # bytes of a header line that are looked at (URLs of several thousand bytes exist)
# ARC 1.0, the URL record.
ARC_HEADER = re.compile(rb"(\S.*) (\d{1,3}(?:\.\d{1,3}){3}) (\d{8,20}) (\S+) (\S+)\r?\n?")


def open_archive(path_or_url: str | Path) -> BinaryIO:
    """The file's stored bytes, seekable; local or any fsspec URL. Raises OSError."""
    if "://" not in str(path_or_url):
        return open(path_or_url, "rb")
    import fsspec

    return fsspec.open(str(path_or_url), "rb", compression=None).open()


def hash_archive(path_or_url: str | Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file, local or by URL. Raises OSError."""
    if "://" not in str(path_or_url):
        return os.path.getsize(path_or_url), file_sha256(Path(path_or_url))
    digest, size = hashlib.sha256(), 0
    with open_archive(path_or_url) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def starts_record(line: bytes) -> bool:
    """Whether a line can be the first of a WARC or ARC record."""
    return line.startswith(b"WARC/") or ARC_HEADER.fullmatch(line) is not None


class ArchiveStream:
    """A forward reader over `file` (binary, seekable); `base` is added to every offset it reports (bytes)."""

    def __init__(self, file: BinaryIO, base: int = 0):
        self._file = file
        self.base = base
        self._raw = b""  # read from the file, not yet decompressed
        self._raw_end = 0  # offset in the file after `_raw`
        self._buffer = bytearray()  # decompressed, not yet taken
        self._taken = 0  # bytes at the front of `_buffer` that were taken
        self._member: zlib._Decompress | None = None
        self._member_start = 0
        self._untouched = False  # whether nothing of the current member was unpacked yet
        self._unpacked = 0  # bytes that the current member has unpacked to so far
        # "", "truncated", "corrupt_gzip" or "compression_bomb": why the current member stopped.
        self.fault = ""
        self._load()
        self.is_gzip = self._raw.startswith(GZIP_MAGIC[:2])
        if self.is_gzip:
            self._open_member()

    def _load(self) -> bool:
        chunk = self._file.read(CHUNK)
        self._raw += chunk
        self._raw_end += len(chunk)
        return bool(chunk)

    def _raw_start(self) -> int:
        return self._raw_end - len(self._raw)

    def _open_member(self) -> bool:
        """Move to the start of the next gzip member, skipping zero padding and garbage; False at the end."""
        self._member = None
        while True:
            at = self._raw.find(GZIP_MAGIC)
            if at >= 0:
                break
            self._raw = self._raw[-2:]
            if not self._load():
                self._raw = b""
                return False
        self._raw = self._raw[at:]
        self._member_start = self._raw_start()
        self._member = zlib.decompressobj(wbits=31)
        self._untouched = True
        self._unpacked = 0
        self.fault = ""
        return True

    def whole_member(self, limit: int) -> bytes | None:
        """Take all bytes of the gzip member that begins at the current position, decompressed.

        None, with nothing taken, where the position is not a member's start or the member has a fault or more than
        `limit` bytes.
        """
        if not self._untouched:
            return None
        self._untouched = False
        start, raw, left = self._member_start, self._raw, limit
        unpack = isal_zlib.decompressobj(wbits=31)
        parts: list[bytes] = []
        while raw and left:
            try:
                parts.append(unpack.decompress(raw, left))
            except ISAL_ERROR:
                break
            left -= len(parts[-1])
            if unpack.eof:
                self._raw, self._member = unpack.unused_data, None
                return parts[0] if len(parts) == 1 else b"".join(parts)
            raw = unpack.unconsumed_tail
            if not raw:
                raw = self._file.read(CHUNK)
                self._raw_end += len(raw)
        self.reopen(start)
        return None

    def reopen(self, member_start: int) -> None:
        """Go back to the start of a gzip member (its offset in the file, without `base`)."""
        self._seek(member_start)
        self._buffer.clear()
        self._taken = 0
        self._open_member()

    def next_member(self) -> bool:
        """Move on to the next gzip member (False: there is none, or the file is not gzip)."""
        if not self.is_gzip:
            return False
        lost = bool(self.fault)
        if lost:  # damaged somewhere: the next member may start anywhere after its first bytes
            self._seek(self._member_start + len(GZIP_MAGIC))
        self._buffer.clear()
        self._taken = 0
        while self._open_member():
            if not lost or starts_record(self.peek_line(MAX_LINE)):
                return True
            self._seek(self._member_start + 1)  # magic bytes by chance, inside compressed data
            self._buffer.clear()
        return False

    def continue_member(self) -> bool:
        """Continue in the next gzip member, where that continues this one's record and does not start another."""
        start = self._member_start
        if not self.is_gzip or not self._open_member():
            return False
        if starts_record(self.peek_line(MAX_LINE)):
            self._seek(self._member_start)
            self._buffer.clear()
            self._taken = 0
            self._member = None  # next_member() opens it again
            self._member_start = start
            return False
        self._member_start = start
        return True

    def _seek(self, offset: int) -> None:
        self._file.seek(offset)
        self._raw, self._raw_end = b"", offset

    def _fill(self) -> bool:
        """Put more decompressed bytes of this member into the buffer; False when there are no more."""
        if self._taken > CHUNK:
            del self._buffer[: self._taken]
            self._taken = 0
        if not self.is_gzip:
            more = bool(self._raw) or self._load()
            self._buffer += self._raw
            self._raw = b""
            return more
        before, self._untouched = len(self._buffer), False
        while self._member is not None and not self._member.eof and not self.fault:
            if not self._raw and not self._load():
                self.fault = "truncated"
                break
            try:
                self._buffer += self._member.decompress(self._raw, CHUNK)
            except zlib.error:
                self.fault = "corrupt_gzip"
                break
            self._raw = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self._unpacked += len(self._buffer) - before
            packed = self._raw_start() - self._member_start
            if self._unpacked > max(BOMB_BYTES, BOMB_RATIO * packed):
                self.fault = "compression_bomb"
            if len(self._buffer) > before:
                return True
        return len(self._buffer) > before

    def offset(self) -> int:
        """The file offset where the next record starts (that of its gzip member, or its first byte)."""
        if self.is_gzip:
            return self.base + self._member_start
        return self.base + self._raw_start() - (len(self._buffer) - self._taken)

    def end(self) -> int:
        """The file offset of the first byte that nothing taken so far needed."""
        if self.is_gzip:
            return self.base + self._raw_start()
        return self.offset()

    def peek(self, size: int) -> bytes:
        """Up to `size` bytes without taking them; fewer only at the end of the member or file."""
        while len(self._buffer) - self._taken < size and self._fill():
            pass
        return bytes(self._buffer[self._taken : self._taken + size])

    def peek_line(self, limit: int) -> bytes:
        """The next line with its line feed, or `limit` bytes of it, without taking it."""
        looked = self._taken
        while True:
            found = self._buffer.find(b"\n", looked, self._taken + limit)
            if found >= 0:
                return bytes(self._buffer[self._taken : found + 1])
            if len(self._buffer) - self._taken >= limit:
                return bytes(self._buffer[self._taken : self._taken + limit])
            done = len(self._buffer) - self._taken
            if not self._fill():
                return bytes(self._buffer[self._taken :])
            looked = self._taken + done

    def take(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the member or file."""
        data = self.peek(size)
        self._taken += len(data)
        return data

    def skip(self, size: int) -> int:
        """Skip up to `size` bytes without keeping them; returns how many there were."""
        left = size
        while left > 0 and (data := self.take(min(left, CHUNK))):
            left -= len(data)
        return size - left

    def buffered(self) -> bytes:
        """Some of the bytes that come next, without taking them: those that are unpacked already."""
        return bytes(self._buffer[self._taken : self._taken + CHUNK])

    def skip_blank(self) -> None:
        """Skip line ends before a record."""
        while self.peek(1):
            block = self.buffered()
            blank = len(block) - len(block.lstrip(b"\r\n"))
            self._taken += blank
            if blank < len(block):
                break

    def push_back(self, data: bytes) -> None:
        """Put back bytes that were just taken, to be read next."""
        self._buffer[: self._taken] = data
        self._taken = 0

    def at_end(self) -> bool:
        """Whether the member (or the plain file) has no byte left."""
        return not self.peek(1)
