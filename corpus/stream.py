"""The bytes of a WARC or ARC file, gzip or not, read by something that always knows where it stands.

Notable: the place of a record is a byte range of the file *as stored*, so that it can be fetched again alone.
In a file with one gzip member a record (the rule) that range is the member. In a file that is one long member
it runs from the member's start to the last compressed byte that the record needed. A member that ends early
or does not decompress sets `fault`, and reading goes on at the next place that looks like a member: nothing
before or after it is lost. (fastwarc 2.0.1, with which the tests compare, says nothing there.) A member that is
well is unpacked in one go by ISA-L, in half of zlib's time; what is not goes the slow way, by zlib.
"""

import re
import zlib
from typing import BinaryIO

from isal import isal_zlib

GZIP_MAGIC = b"\x1f\x8b\x08"  # RFC 1952: ID1, ID2, CM = deflate
# A member that unpacks to more, and to more than so many times its size.
BOMB_BYTES, BOMB_RATIO = (
    256 << 20,
    100,
)
CHUNK = 1 << 16  # bytes read from the file, and decompressed, at a time
MAX_LINE = 1 << 13  # bytes of a header line that are looked at (URLs of several thousand bytes exist)
# ARC 1.0, the URL record.
ARC_HEADER = re.compile(rb"(\S.*) (\d{1,3}(?:\.\d{1,3}){3}) (\d{8,20}) (\S+) (\S+)\r?\n?")


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
        self._untouched = False  # nothing of the current member was unpacked yet
        self._unpacked = 0  # bytes that the current member has given
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
        """Stand at the start of the next gzip member, skipping zero padding and garbage; False at the end."""
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
        """All bytes of the gzip member at whose start the stream stands, taken; None where that cannot be had
        without a fault and within `limit` bytes, and then nothing is taken."""
        if not self._untouched:
            return None
        self._untouched = False
        start, raw, left = self._member_start, self._raw, limit
        unpack, parts = isal_zlib.decompressobj(wbits=31), []
        while raw and left:
            try:
                parts.append(unpack.decompress(raw, left))
            except isal_zlib.error:
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
        """Stand at the start of a gzip member again (its offset in the file, without `base`)."""
        self._seek(member_start)
        self._buffer.clear()
        self._taken = 0
        self._open_member()

    def next_member(self) -> bool:
        """Leave the current gzip member (False: there is no other, or the file is not gzip)."""
        if not self.is_gzip:
            return False
        lost = bool(self.fault)
        if lost:  # broken somewhere: the next member may start anywhere behind its first bytes
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
        """Go on in the next gzip member, where that continues this one's record and does not start another."""
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
        """Put more decompressed bytes of this member into the buffer; False when it has no more to give."""
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
        """Where in the file the next record starts (its gzip member's start, or the very byte)."""
        if self.is_gzip:
            return self.base + self._member_start
        return self.base + self._raw_start() - (len(self._buffer) - self._taken)

    def end(self) -> int:
        """The first byte of the file that nothing taken so far needed."""
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
        """Pass over up to `size` bytes without holding them; how many there were."""
        left = size
        while left > 0 and (data := self.take(min(left, CHUNK))):
            left -= len(data)
        return size - left

    def at_hand(self) -> bytes:
        """Some of the bytes that come next: those that are unpacked already, untaken."""
        return bytes(self._buffer[self._taken : self._taken + CHUNK])

    def skip_blank(self) -> None:
        """Pass over line ends before a record."""
        while self.peek(1):
            block = self.at_hand()
            blank = len(block) - len(block.lstrip(b"\r\n"))
            self._taken += blank
            if blank < len(block):
                break

    def give_back(self, data: bytes) -> None:
        """Put bytes that were just taken back in front."""
        self._buffer[: self._taken] = data
        self._taken = 0

    def at_end(self) -> bool:
        """Whether the member (or the plain file) has no byte left."""
        return not self.peek(1)
