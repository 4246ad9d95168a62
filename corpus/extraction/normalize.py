"""A line of text in its one written form: single spaces, composed characters (NFC), nothing invisible."""

import re
import unicodedata

INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufffd]"
)


def normalize_line(line: str) -> str:
    """One line with single spaces, composed characters (NFC) and nothing invisible."""
    line = " ".join(line.split())
    if not line.isascii():
        line = unicodedata.normalize("NFC", line)
    return line if line.isprintable() else " ".join(INVISIBLE.sub("", line).split())
