"""Personal data become typed placeholders: <email>, <ip>, <phone>, <iban>, <card>.

A pure function of the document (its text, language and host), so the result does not depend on the order of documents.
What can be verified is verified: IP addresses are public ones (RFC 6890, by `ipaddress`), IBANs have their country's
length and pass mod 97 (ISO 13616), card numbers have an issuer's prefix and length and pass Luhn's check (ISO/IEC
7812-1), telephone numbers are in corpus/phones.py. Each kind has a cheap pre-check: a text without digits and @ costs
almost nothing. Precision, recall and cost: docs/pii.md.
"""

import ipaddress
import re
from collections.abc import Collection

from corpus.choices import PII_KINDS
from corpus.phones import GAP, find_phones

PRECEDENCE = (
    "email",
    "ip",
    "iban",
    "card",
    "phone",
)  # of two that overlap, the one with the stronger check is kept
Span = tuple[int, int, str]  # start, end, kind

LOCAL = r"[\w](?:[\w.+%'-]{0,62}[\w])?"
DOMAIN = r"(?:[\w](?:[\w-]{0,61}[\w])?\.){1,8}[^\W\d_]{2,24}"
EMAIL = re.compile(rf"(?<![\w.+%@-]){LOCAL}@{DOMAIN}(?![\w@])")
# Obfuscated addresses, "name (at) example.org", "name[at]example[dot]org": their authors want no program to use them.
AT = r"[\[({<]{1,2} ?(?:at|ät|@|arroba|собака|małpa) ?[\])}>]{1,2}"
OBFUSCATED_GATES = [re.compile(rf"\{bracket} ?(?:[aA][tT]|ät|@|arr|соб|mał)") for bracket in "([{<"]
DOT = r"(?:\.| ?[\[({<] ?(?:dot|punkt|\.|point|punto|kropka) ?[\])}>] ?)"
OBFUSCATED = re.compile(
    rf"(?<![\w.+%@-]){LOCAL} ?{AT} ?"
    rf"(?:[\w](?:[\w-]{{0,61}}[\w])?{DOT}){{1,8}}[^\W\d_]{{2,24}}(?![\w@])",
    re.I,
)
FILE_NAMES = ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js")  # logo@2x.png

DIGITS = re.compile(rf"\d(?:\d|{GAP}){{5,}}")
IPV4 = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}")
IPV6_GATE = re.compile(r":[0-9A-Fa-f]{0,4}:")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
# Words before a dotted quad that make it a version, a section or a rule instead of an address.
NOT_AN_ADDRESS = re.compile(
    r"(?:\b(?:v|ver|vers|version|release|rel|build|firmware|driver|section|chapter|article|clause|rule|"
    r"chrome|firefox|safari|opera|windows|android|ios|kernel|update|patch|§|kapitel|abschnitt|art)\.?\s*|[/§v]\s*)$",
    re.I,
)

IBAN = re.compile(r"[A-Z]{2}\d{2}(?:[ \u00a0-]?[0-9A-Z]){10,30}")
IBAN_LENGTHS = {  # country -> characters, from the SWIFT IBAN registry (ISO 13616)
    pair[:2]: int(pair[2:])
    for pair in re.findall(
        r"\w{4}",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR21 CY28 CZ24 DE22 DJ27 "
        "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
        "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
        "MK19 MN20 MR27 MT32 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
        "SC32 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30",
    )
}

CARD = re.compile(r"\d(?:[ \u00a0-]?\d){12,18}")
CARD_GROUPS = {(4, 4, 4, 4), (4, 6, 5), (4, 4, 4, 4, 3), (4, 6, 4), (6, 13), (4, 4, 4, 1)}
CARD_WORDS = re.compile(
    r"(?:(?<!<)card|visa|mastercard|maestro|amex|american express"
    r"|karte|carte|tarjeta|cart[ãa]o|karta|karty|карт|κάρτα|卡)"
    r"[^\d\n<>]{0,40}$",
    re.I,
)
ISSUERS = (  # (first prefix, last prefix, lengths): ISO/IEC 7812 ranges as the card networks publish them
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("3528", "3589", (16,)),  # JCB
    ("300", "305", (14,)),  # Diners Club
    ("36", "36", (14,)),
    ("38", "39", (14,)),
    ("6011", "6011", (16, 19)),  # Discover
    ("644", "659", (16, 19)),
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
    ("5018", "5018", (16, 17, 18, 19)),  # Maestro
    ("5020", "5020", (16, 17, 18, 19)),
    ("5038", "5038", (16, 17, 18, 19)),
    ("6304", "6304", (16, 17, 18, 19)),
    ("6759", "6763", (16, 17, 18, 19)),
)


def find_pii(text: str, kinds: Collection[str] = PII_KINDS, language: str = "", host: str = "") -> list[Span]:
    """All personal data of the given kinds as (start, end, kind), in order, none overlapping another.

    `language` (ISO 639-1) and `host` determine in which regions' national formats telephone numbers are looked for.
    """
    spans: list[Span] = []
    if "email" in kinds:
        spans += [(*span, "email") for span in _emails(text)]
    if "ip" in kinds and IPV6_GATE.search(text):
        spans += [(*m.span(), "ip") for m in IPV6.finditer(text) if _is_address(text, *m.span())]
    runs = [m.span() for m in DIGITS.finditer(text)]  # one scan for all kinds made of digits
    for kind in FINDERS.keys() & set(kinds):
        spans += [(*span, kind) for run in runs for span in FINDERS[kind](text, *run)]
    if "phone" in kinds:
        spans += [(*span, "phone") for span in find_phones(text, runs, language, host)]
    return _without_overlaps(spans)


def replace_spans(text: str, spans: list[Span]) -> str:
    """The text with each span replaced by its kind in angle brackets."""
    pieces, end = [], 0
    for start, stop, kind in spans:
        pieces += [text[end:start], f"<{kind}>"]
        end = stop
    return "".join([*pieces, text[end:]])


def remove_pii(
    text: str, kinds: Collection[str] = PII_KINDS, language: str = "", host: str = ""
) -> tuple[str, list[tuple[str, str]]]:
    """The text with placeholders for all that find_pii finds, until it finds no more; and those findings: (kind, text).

    One round is almost always enough; a number may be read differently once its neighbour is replaced.
    """
    found: list[tuple[str, str]] = []
    while spans := find_pii(text, kinds, language, host):
        found += [(kind, text[start:end]) for start, end, kind in spans]
        text = replace_spans(text, spans)
    return text, found


def replace_pii(text: str, kinds: Collection[str] = PII_KINDS, language: str = "", host: str = "") -> str:
    """The text with placeholders for all personal data."""
    return remove_pii(text, kinds, language, host)[0]


def _emails(text: str) -> list[tuple[int, int]]:
    spans, at = [], text.find("@")
    while at >= 0:  # around each @, as far as an address can reach: searching the whole text is slow
        found = [m for m in EMAIL.finditer(text, max(0, at - 66), at + 270) if m.start() < at < m.end()]
        spans += [m.span() for m in found if not m.group().lower().endswith(FILE_NAMES)]
        at = text.find("@", at + 1)
    if any(gate.search(text) for gate in OBFUSCATED_GATES):
        spans += [m.span() for m in OBFUSCATED.finditer(text)]
    return spans


def _ipv4(text: str, start: int, end: int) -> list[tuple[int, int]]:
    found = (m.span() for m in IPV4.finditer(text, start, end))
    return [span for span in found if _stands_alone(text, *span) and _is_address(text, *span)]


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether a dotted quad is not part of a longer number, word or path."""
    before, after = text[start - 1 : start], text[end : end + 2]
    if before.isalnum() or (before and before in ".:/-_"):
        return False
    return not (after[:1].isalnum() or after[:1] in ("-", "_") or (after[:1] == "." and after[1:].isdigit()))


def _is_address(text: str, start: int, end: int) -> bool:
    return _is_public(text[start:end]) and not NOT_AN_ADDRESS.search(text[max(0, start - 16) : start])


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _ibans(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """IBANs around a run of digits; they may begin before it ("GB29 NWBK 6016 …")."""
    spans = []
    for m in IBAN.finditer(text, max(0, start - 24), end + 24):
        length = IBAN_LENGTHS.get(m.group()[:2])
        if length is None or text[max(0, m.start() - 1) : m.start()].isalnum():
            continue
        stop = _end_of(text, m.start(), m.end(), length)
        if stop and not text[stop : stop + 1].isdigit() and is_iban(text[m.start() : stop]):
            spans.append((m.start(), stop))
    return spans


def _end_of(text: str, start: int, end: int, length: int) -> int | None:
    """The end of the `length`-th letter or digit from `start`; None if that is beyond `end`."""
    positions = [i for i in range(start, end) if text[i].isalnum()]
    return positions[length - 1] + 1 if len(positions) >= length else None


def is_iban(shown: str) -> bool:
    """Whether an account number has its country's length and correct check digits (ISO 13616, ISO 7064 mod 97-10)."""
    plain = "".join(c for c in shown if c.isalnum())
    if not plain.isascii() or IBAN_LENGTHS.get(plain[:2]) != len(plain):
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _cards(text: str, start: int, end: int) -> list[tuple[int, int]]:
    spans = []
    for m in CARD.finditer(text, start, end):
        before, after = text[max(0, m.start() - 64) : m.start()], text[m.end() : m.end() + 1]
        if (
            after.isalnum()
            or after == "-"
            or before[-1:].isalnum()
            or before[-1:] in ("/", "=", ".", "_", "-", "#")
        ):
            continue
        groups = tuple(len(g) for g in re.split(r"\D", m.group()))
        grouped = groups in CARD_GROUPS or (len(groups) == 1 and CARD_WORDS.search(before))
        if grouped and is_card(m.group()):
            spans.append(m.span())
    return spans


def is_card(shown: str) -> bool:
    """Whether a number has an issuer's prefix and length and passes Luhn's check (ISO/IEC 7812-1, annex B)."""
    digits = "".join(c for c in shown if c.isdigit())
    if not digits.isascii() or not any(
        low <= digits[: len(low)] <= high and len(digits) in lengths for low, high, lengths in ISSUERS
    ):
        return False
    doubled = (sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return len(set(digits)) > 1 and (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def _without_overlaps(spans: list[Span]) -> list[Span]:
    """The spans in order, each once; where two overlap, the kind earlier in PRECEDENCE is kept."""
    rank = {kind: number for number, kind in enumerate(PRECEDENCE)}
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (rank[s[2]], s[0], -s[1])):
        if all(span[1] <= other[0] or span[0] >= other[1] for other in kept):
            kept.append(span)
    return sorted(kept)


FINDERS = {"ip": _ipv4, "iban": _ibans, "card": _cards}
