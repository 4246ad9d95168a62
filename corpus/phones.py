"""Telephone and fax numbers in running text: found by shape, accepted by context, verified by libphonenumber.

Digits alone are weak evidence: dates, prices, ISBNs and coordinates have a telephone number's shape. So a run of
digits counts only where one of these holds, tried in this order:

  international  it starts with + or 00 and is a valid number of that country;
  labelled       a word for telephone or fax is directly at it (then any 6 to 15 digits are accepted: labels are
                 reliable, while numbering plans change), or near it and it is valid in one of the page's regions;
  listed         only "," "/" or "or" separates it from a number just found ("Tel. 36-40-09, 36-42-11");
  layout         it is written as its region writes numbers: (area) or 0area separate from the rest, or 3-3-4 in
                 North America, and is valid there.

Validity: libphonenumber's metadata by the package phonenumberslite (ITU-T E.164 and the national plans). The page's
regions come from its language and its host's top-level domain, so that the result depends on the document alone.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phonenumbers import PhoneNumber

MIN_DIGITS, MAX_DIGITS = 6, 15  # E.164: at most 15
MAX_LABELLED = 20  # with the prefix of a relay service or an extension
DIGIT = re.compile(r"\d")
LATER = re.compile(r"[ \u00a0][+＋(（]*\d")
GAP = r"[ \u00a0\u2009\u202f.()/（）\u2010-\u2015\u2212－-]"
RUN = re.compile(rf"\d(?:{GAP}{{0,4}}\d){{5,}}")
INTERNATIONAL = re.compile(r"00[1-9]")
TRUNK = re.compile(r"[(（]\d{1,5}[)）]|0")
NORTH_AMERICAN = re.compile(r"(?:1[-. ])?(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}")
LAYOUT = re.compile(rf"{TRUNK.pattern}|{NORTH_AMERICAN.pattern}")
DATE = re.compile(
    r"(?:(?:19|20)\d\d[-./](?:0?[1-9]|1[0-2])[-./](?:0?[1-9]|[12]\d|3[01])(?!\d)"
    r"|(?:0?[1-9]|[12]\d|3[01])\. ?(?:0?[1-9]|1[0-2])\. ?(?:19|20)?\d\d(?!\d)"
    r"|(?:0?[1-9]|[12]\d|3[01])[-/](?:0?[1-9]|[12]\d|3[01])[-/](?:19|20)?\d\d(?!\d)"
    r"|(?:1[5-9]|20)\d\d ?[-/–— ] ?(?:1[5-9]|20)?\d\d(?!\d))"
)
DOTTED_QUAD = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
THOUSANDS = re.compile(r"\d{1,3}(?:\.\d{3})+|\d{1,3}(?:[ \u00a0\u202f]\d{3})+|\d+\.\d+")
# Words for telephone and fax, in lower case, in the languages of the quality rules and their neighbours.
LABEL = re.compile(
    r"(?P<exact>(?<!<)(?<![^\W\d_])(?:tel|tél|tlf|telf|fono?|ph|faxn?r?|faks|mob(?:il|iel)?|mobile|cell|handy|gsm|call|phones?"
    r"|kom|puh|tfn|whatsapp|zadzwoń|τηλ|φαξ|κιν|тел|моб|portable)(?![^\W\d_])"
    r"|(?:tel[eé]f[oó]n|t[eé]l[eé]phon|telefoon|tele?fax|hotline|rufnummer|infolini|komórk|freephone|textphone|тел[еé]фон"
    r"|факс|τηλ[εέ]φων|puhelin)\w{0,3}"
    r"|هاتف|فاكس|تلفون|جوال|전화"
    r"|[电電][话話]|[热熱][线線]|[专專][线線]|手[机機]|[传傳]真|[总總][机機]|座[机機]|携帯|[☎☏✆📞📱🕿])"
    r"|(?<![^\W\d_])(?:calling|dial|contact|numer|nummer|numéro|número|appel|ll[aá]m|anruf|erreich|kontakt|звон"
    r"|номер|sms)\w{0,6}"
    r"|致电|撥打|拨打|洽詢|咨询|聯[系絡繫]|联系"
)
BEFORE = 64  # characters before a number that are searched for its label
AT = re.compile(r"[\s.:：︰)）(（/|,№-]{0,6}(?:(?:nr|no|n°|number)[\s.:：︰(（№-]{0,3})?")
NEAR = re.compile(
    r"[^\d\n<>]{0,40}"
)  # not across a placeholder, just as not across the number that it replaced
AFTER = re.compile(
    r"[ \u00a0]?[(（]?(?:phone|fax|tel(?:efon|ephone)?|mobile?|cell|voice|office|toll[- ]free)\b(?![.:]? ?[+(\d])",
    re.I,
)
LIST = re.compile(
    r"[ \u00a0]?(?:[,;/、，|]|or|oder|ou|o|или|и|lub|i|oraz|and|und|y|or call|或|及|和)?[ \u00a0]?"
)
# Labels of other numbers, directly before them.
OTHER = re.compile(
    r"(?:\b(?:isbn(?:-1[03])?|issn|doi|pmid|pmc|arxiv|iban|bic|blz|konto(?:nummer)?|kto|ust|vat|uid|hr[ab]|icq|gps|lat"
    r"|lon|latitude|longitude|id|art|artikel|item|order|sku|ref|az|kb|zip|plz|инн|огрн|кпп|nip|regon|krs|steuer|icp|№"
    r"|no|nr|nummer|patent|version|v|vol|p|pp|s|seite|page|rfc|cas|ean|gtin|upc)[\s.:/#-]*(?:(?:nr|no|number)[.:]? ?)?"
    r"|[#$€£¥₽=_§])$",
    re.I,
)
UNIT = re.compile(
    r"[ \u00a0]?(?:[%‰€$£¥°²³×]|:\d\d|(?:eur|usd|euro|zł|руб|pln|chf|kč|uhr|km|kg|mm|cm|mb|gb|kb|mhz|pixel|meter|"
    r"millionen|million|mio|mrd|元|万|億|亿)(?![^\W\d_]))",
    re.I,
)
LANGUAGE_REGIONS = {
    "ar": "EG SA AE MA DZ",
    "cs": "CZ",
    "da": "DK",
    "de": "DE AT CH",
    "el": "GR CY",
    "en": "US GB AU NZ IE IN ZA",
    "es": "ES MX AR CL CO PE US",
    "fi": "FI",
    "fr": "FR BE CH US",
    "hu": "HU",
    "it": "IT CH",
    "ja": "JP",
    "ko": "KR",
    "nl": "NL BE",
    "no": "NO",
    "pl": "PL",
    "pt": "PT BR",
    "ro": "RO",
    "ru": "RU UA KZ BY",
    "sv": "SE",
    "tr": "TR",
    "uk": "UA",
    "zh": "CN TW HK",
}
# Top-level domains that are not their country's only, or not its ISO code.
GENERIC_TLDS = {**dict.fromkeys(("tv", "me", "io", "co", "ai", "fm"), ""), "uk": "GB"}


@lru_cache(maxsize=4096)
def regions_of(language: str, host: str) -> tuple[str, ...]:
    """ISO 3166 codes of the regions whose national formats a page may use: its host's country first."""
    from phonenumbers import SUPPORTED_REGIONS

    tld = host.rsplit(".", 1)[-1].lower()
    country = GENERIC_TLDS.get(tld, tld.upper())
    country = country if country in SUPPORTED_REGIONS else ""
    return tuple(dict.fromkeys([country, *LANGUAGE_REGIONS.get(language, "").split()]))[not country :]


def find_phones(
    text: str, runs: Iterable[tuple[int, int]], language: str = "", host: str = ""
) -> list[tuple[int, int]]:
    """Every telephone number in `runs` (spans of a text that are dense with digits) as (start, end), in order."""
    found: list[tuple[int, int]] = []
    for start, end in runs:
        for run in RUN.finditer(text, start, end):
            at, stop = run.span()
            tries = 3  # start positions tried in a run: enough for "60 50 7 613-228-9800", not for a table
            while stop - at >= MIN_DIGITS and tries:
                span = _number_at(text, at, stop, found[-1] if found else None, language, host)
                if span:
                    found.append(span)
                else:
                    tries -= 1
                rest = DIGIT.search(text, span[1], stop) if span else LATER.search(text, at, stop)
                at = rest.end() - 1 if rest else stop
    return found


def _number_at(
    text: str, at: int, stop: int, previous: tuple[int, int] | None, language: str, host: str
) -> tuple[int, int] | None:
    """The number whose first digit is at `at`: the whole run to `stop`, or fewer of its groups; None for no number."""
    begin = _opening(text, at, stop)
    if DATE.match(text, at) and text[begin] not in "+＋":
        return None
    international = text[begin : at + 1].lstrip("(（")[0] in "+＋" or INTERNATIONAL.match(text, at)
    label = _label(text, begin)
    listed = previous is not None and LIST.fullmatch(text, previous[1], begin) is not None
    if not (international or label or listed or LAYOUT.match(text, begin) or AFTER.match(text, stop)):
        return None
    glued = begin > 0 and (text[begin - 1].isalnum() or text[begin - 1] in ".-_") and text[begin] not in "+＋"
    if text[begin - 1 : begin] == "," and text[begin - 2 : begin - 1].isdigit():  # 18,026.80
        return None
    if (glued and label != "at" and not _is_cjk(text[begin - 1])) or _in_url(text, begin):
        return None
    for last in _ends(text, at, stop):
        if _is_phone(text[begin:last], text, begin, last, label, listed, language, host):
            return begin, last
    return None


def _opening(text: str, at: int, stop: int) -> int:
    """Where the number with its first digit at `at` begins: at its plus sign, or a parenthesis closed in it."""
    begin = at
    while begin > max(0, at - 4) and text[begin - 1] in "+＋(（ ":
        begin -= 1
    opened = sum(text.count(bracket, begin, stop) for bracket in "(（")
    closed = sum(text.count(bracket, begin, stop) for bracket in ")）")
    while text[begin] == " " or (opened > closed and text[begin] in "(（"):
        opened -= text[begin] in "(（"
        begin += 1
    return begin


def _label(text: str, begin: int) -> str:
    """'at' if a word for telephone is directly before a position, 'near' if one is near it, else ''."""
    before = text[max(0, begin - BEFORE) : begin].lower()
    labels = list(LABEL.finditer(before))
    if not labels:
        return ""
    last = labels[-1]
    head = before[before.rfind("\n", 0, last.start()) + 1 : last.start()].strip()
    alone = not head or "\n" not in before[last.end() :]  # across a line break only from a line of its own
    if last["exact"] and alone and AT.fullmatch(before, last.end()):
        return "at"
    return "near" if NEAR.fullmatch(before, last.end()) else ""


def _ends(text: str, start: int, end: int) -> list[int]:
    """Where a number that starts at `start` may end: at the end of the run, or before one of its last three gaps."""
    spaces = [at for at in range(end - 1, start, -1) if text[at] in " \u00a0/"]
    return [end, *spaces[:3]]


def _is_phone(
    shown: str, text: str, begin: int, last: int, label: str, listed: bool, language: str, host: str
) -> bool:
    """Whether `shown`, text[begin:last], is a telephone number by one of the four criteria of the module docstring."""
    n_digits = sum(map(str.isdigit, shown))
    if n_digits < MIN_DIGITS or n_digits > (MAX_LABELLED if label == "at" or listed else MAX_DIGITS):
        return False
    if DOTTED_QUAD.fullmatch(shown):  # an IP address; a public one is found as such
        return False
    if shown[0] in "+＋" or shown[1:2] in ("+", "＋") or INTERNATIONAL.match(shown.lstrip("(（")):
        return _international(shown, label, n_digits)
    if label != "at" and UNIT.match(text, last):
        return False
    if label == "at" or (listed and not THOUSANDS.fullmatch(shown)):
        return True
    if n_digits == MIN_DIGITS or OTHER.search(text[max(0, begin - BEFORE) : begin]):
        return False
    near = bool(label or AFTER.match(text, last))
    return any(_national(shown, region, near) for region in regions_of(language, host))


def _international(shown: str, label: str, n_digits: int) -> bool:
    """Whether a number with a country code is valid; a labelled one need only be possible."""
    from phonenumbers import is_possible_number, is_valid_number

    bare = shown.lstrip("(（")
    if n_digits < 8 or (bare[0] == "0" and label != "at" and not re.search(GAP, bare[4:])):
        return False  # 0049301234567 without a label is more often an article number
    number = _parse("+" + re.sub(r"^(?:[+＋]|00)", "", bare).replace("(0)", ""), None)
    return number is not None and (is_valid_number(number) or (label == "at" and is_possible_number(number)))


def _national(shown: str, region: str, near: bool) -> bool:
    """Whether a number is valid in a region and, unless a label is near, formatted as numbers are there."""
    from phonenumbers import is_valid_number, length_of_national_destination_code, national_significant_number

    number = _parse(shown, region)
    if number is None or not is_valid_number(number):
        return False
    if near:
        return not THOUSANDS.fullmatch(shown)
    if number.country_code == 1:
        return NORTH_AMERICAN.fullmatch(shown) is not None
    if not TRUNK.match(shown):
        return False
    if re.fullmatch(r"[(（]\d{3,5}[)）] ?\d[\d -]{4,9}", shown):
        return True
    area = national_significant_number(number)[: length_of_national_destination_code(number)]
    groups = re.findall(r"\d+", shown)
    return bool(area) and len(groups) > 1 and area in (groups[0], groups[0].removeprefix("0"))


def _parse(shown: str, region: str | None) -> "PhoneNumber | None":
    """None for what is not a number."""
    from phonenumbers import NumberParseException, parse

    try:
        return parse(shown, region)
    except NumberParseException:
        return None


def _in_url(text: str, start: int) -> bool:
    """Whether a position is inside a web address, a path or a parameter."""
    token = text[max(0, start - 200) : start]
    token = token[max(token.rfind(" "), token.rfind("\n")) + 1 :].lower()
    return "://" in token or "www." in token or (token.endswith(("/", "=", "_")) and len(token) > 1)


def _is_cjk(character: str) -> bool:
    return "\u3040" <= character <= "\u9fff"
