"""Write WARC files whose bytes depend on nothing but what is written.

Notable: gzip members hold *stored* deflate blocks (RFC 1951, 3.2.4), made here, because zlib and its drop-in
replacements compress the same input to different bytes on different machines. The price is size (factor 3).
"""

import contextlib
import hashlib
import zlib
from base64 import b32encode
from pathlib import Path
from types import TracebackType

from core.files import atomic_path

GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # RFC 1952: no name, time 0, unknown system
MAX_STORED = 65_535  # bytes of one stored block
RESPONSE = "application/http; msgtype=response"


def stored_gzip(data: bytes) -> bytes:
    """One gzip member that holds `data` uncompressed."""
    blocks = [data[i : i + MAX_STORED] for i in range(0, len(data), MAX_STORED)] or [b""]
    parts = [GZIP_HEADER]
    for number, block in enumerate(blocks):
        size = len(block)
        last = number == len(blocks) - 1
        parts += [bytes([last]), size.to_bytes(2, "little"), (size ^ 0xFFFF).to_bytes(2, "little"), block]
    parts += [zlib.crc32(data).to_bytes(4, "little"), (len(data) & 0xFFFFFFFF).to_bytes(4, "little")]
    return b"".join(parts)


def warc_record(
    warc_type: str,
    record_id: str,
    date: str,
    block: bytes,
    *,
    url: str = "",
    content_type: str = RESPONSE,
    extra: dict[str, str] | None = None,
) -> bytes:
    """A record of WARC 1.1, not compressed. `record_id` is a URN without brackets, `date` is ISO 8601 in UTC."""
    digest = b32encode(hashlib.sha1(block, usedforsecurity=False).digest()).decode()
    fields = {
        "WARC-Type": warc_type,
        "WARC-Record-ID": f"<{record_id}>",
        "WARC-Date": date,
        **({"WARC-Target-URI": url} if url else {}),
        "WARC-Block-Digest": f"sha1:{digest}",
        **(extra or {}),
        "Content-Type": content_type,
        "Content-Length": str(len(block)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return b"WARC/1.1\r\n" + head.encode() + b"\r\n" + block + b"\r\n\r\n"


class WarcWriter:
    """A context manager that writes records one gzip member each; the file gets its name only when it is complete."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "WarcWriter":
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            self._file = stack.enter_context(temporary.open("wb"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(
        self,
        warc_type: str,
        record_id: str,
        date: str,
        block: bytes,
        *,
        url: str = "",
        content_type: str = RESPONSE,
        extra: dict[str, str] | None = None,
        cut: int = 0,
    ) -> tuple[int, int]:
        """Append one record (see warc_record) without the last `cut` bytes of its member.

        Returns its offset and length in bytes.
        """
        record = warc_record(
            warc_type, record_id, date, block, url=url, content_type=content_type, extra=extra
        )
        member = stored_gzip(record)
        member = member[: len(member) - cut]
        offset = self._file.tell()
        self._file.write(member)
        return offset, len(member)
