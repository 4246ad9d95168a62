"""Personal data: e-mail addresses and public IP addresses become typed placeholders, `<email>` and `<ip>`.

A pure function of the text, so a document reads the same whichever came before it. IP addresses of private,
reserved and documentation ranges are nobody's and stay (RFC 6890, by `ipaddress`); so do version numbers.
"""

import ipaddress
import re

EMAIL = re.compile(
    r"(?<![\w.+%-])[\w](?:[\w.+%'-]{0,62}[\w])?@(?:[\w](?:[\w-]{0,61}[\w])?\.){1,8}[^\W\d_]{2,24}(?![\w@])"
)
IPV4 = re.compile(r"(?<![\w.:/-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-])(?!\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
# Words before four dotted numbers that make them a version, a section or a rule, not an address.
NOT_AN_ADDRESS = re.compile(
    r"(?:\b(?:v|ver|vers|version|release|rel|build|firmware|driver|section|chapter|article|clause|rule|"
    r"chrome|firefox|safari|opera|windows|android|ios|kernel|update|patch)\.?\s*|[/§v]\s*)$",
    re.I,
)

Span = tuple[int, int, str]  # start, end, kind


def find_pii(text: str) -> list[Span]:
    """Every e-mail and public IP address as (start, end, kind), in order; kind is 'email' or 'ip'."""
    spans: list[Span] = []
    if "@" in text:
        spans += [(m.start(), m.end(), "email") for m in EMAIL.finditer(text)]
    for pattern in (IPV4, IPV6):
        for m in pattern.finditer(text):
            if _is_public(m.group()) and not NOT_AN_ADDRESS.search(text[max(0, m.start() - 16) : m.start()]):
                spans.append((m.start(), m.end(), "ip"))
    return _without_overlaps(sorted(spans))


def replace_spans(text: str, spans: list[Span]) -> str:
    """The text with each span replaced by its kind in angle brackets."""
    pieces, end = [], 0
    for start, stop, kind in spans:
        pieces += [text[end:start], f"<{kind}>"]
        end = stop
    return "".join([*pieces, text[end:]])


def replace_pii(text: str) -> str:
    """The text with placeholders for all that find_pii finds."""
    return replace_spans(text, find_pii(text))


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _without_overlaps(spans: list[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in spans:
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    return kept
