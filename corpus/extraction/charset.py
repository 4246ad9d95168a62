"""Bytes to text as a browser would: byte order mark, HTTP header, <meta>, then a guess by content.

Labels mean what the WHATWG Encoding Standard says ("latin1" is windows-1252, "gb2312" is GB18030, "ks_c_5601-1987" is
windows-949), by webencodings; the order of the sources and the meta prescan are the HTML Standard's ("determining the
character encoding"). One deviation from browsers: a declaration that the bytes contradict is ignored.
"""

import codecs
import re
from collections.abc import Iterator

BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
PRESCAN = 1024  # bytes, HTML Standard 13.2.3.2
LATE = (
    16 << 10
)  # bytes; a parser that meets a <meta> after the prescan starts over with its encoding (13.2.3.4)
_VALUE = rb"\s*=\s*[\"']?\s*([^\"'\s;/>]+)"
COMMENT = re.compile(rb"<!--.*?-->", re.S)
META = re.compile(rb"<meta[\s/](?:[^>\"']|\"[^\"]*\"|'[^']*')*>", re.I)
META_CHARSET = re.compile(rb"^(?:[^\"']|\"[^\"]*\"|'[^']*')*?[\s/]charset" + _VALUE, re.I)
CONTENT_CHARSET = re.compile(rb"\bcontent\s*=.*?charset" + _VALUE, re.I | re.S)
HTTP_EQUIV = re.compile(rb"\bhttp-equiv\s*=\s*[\"']?\s*content-type\b", re.I)
XML = re.compile(rb"^\s*<\?xml\s[^>]*?encoding" + _VALUE, re.I)
# Python's codecs that accept as much as the standard's decoders do, where those of the same name accept less.
WIDER = {"gbk": "gb18030", "iso-8859-8-i": "iso-8859-8"}


def decode(data: bytes, charset: str | None = None) -> str:
    """The text of a page; `charset` is the HTTP header's, if there was one. Never fails.

    Bytes that cannot be decoded become U+FFFD. Where those are most of what is not ASCII, the declaration was wrong
    and the next source is tried.
    """
    for mark, name in BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace")
    for codec in declared(data, charset):
        text = _read(data, codec)
        if text is not None:
            return text
    return _guess(data)


def codec_of(label: str | None) -> str | None:
    """Python's codec for an encoding label of the web, or None where the standard knows no such label.

    None too for the standard's "replacement" encodings (hz-gb-2312, iso-2022-kr …), which browsers refuse.
    """
    import webencodings

    found = webencodings.lookup(label) if label else None
    if found is None or found.name in ("replacement", "x-user-defined"):
        return found and ("windows-1252" if found.name == "x-user-defined" else None)
    return WIDER.get(found.name, found.codec_info.name)


def declared(data: bytes, charset: str | None) -> Iterator[str]:
    """Declared codecs, in the order in which a browser tries them."""
    named = codec_of(charset)
    if named:
        yield named
    label = meta_label(data)
    named = codec_of(label) if label else None
    if named:  # a page whose <meta> could be read as ASCII is not in UTF-16, whatever it declares
        yield "utf-8" if named.startswith("utf-16") else named


def meta_label(data: bytes) -> str | None:
    """The encoding that an HTML page declares itself, in a <meta> or an XML declaration."""
    for size in (PRESCAN, LATE):
        head = data[:size]
        if b"<!--" in head:
            head = COMMENT.sub(b"", head)
        for meta in META.findall(head):
            found = META_CHARSET.search(meta)
            if not found and HTTP_EQUIV.search(meta):
                found = CONTENT_CHARSET.search(meta)
            if found:
                return found.group(1).decode("ascii", "replace")
    found = XML.search(data[:PRESCAN])
    return found.group(1).decode("ascii", "replace") if found else None


def _read(data: bytes, codec: str) -> str | None:
    """The text, or None where the bytes contradict the declaration."""
    try:
        return data.decode(codec)
    except UnicodeDecodeError:
        pass  # a few broken bytes, or another encoding: distinguished below
    if codec != "utf-8":
        try:
            return data.decode("utf-8")  # text with non-ASCII bytes is not valid UTF-8 by accident
        except UnicodeDecodeError:
            pass
    text = data.decode(codec, "replace")
    not_ascii = len(text) - len(text.encode("ascii", "ignore"))
    return text if 2 * text.count("\ufffd") <= not_ascii else None


def _guess(data: bytes) -> str:
    """UTF-8 if the bytes are valid; else uchardet's guess; else windows-1252, as a Western browser would."""
    from resiliparse.parse.encoding import detect_encoding

    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        codec = codec_of(detect_encoding(data)) or "windows-1252"
    text = _read(data, codec)
    return data.decode("windows-1252", "replace") if text is None else text
