"""The personal data planted into the sample web, which belong to nobody, and the decoys that must survive.

Domains are of reserved names (RFC 2606), telephone numbers of the ranges that regulators keep for fiction (NANPA
555-01xx, Ofcom 020 7946 0xxx, Bundesnetzagentur 030 23125xxx, ARCEP 01 99 00 xx xx), IBANs of banks that do not exist
with valid check digits, card numbers under the prefixes of the networks' test cards with a valid Luhn digit.
"""

import ipaddress
from random import Random

from corpus.sample_web.texts import Article
from corpus.sample_web.trouble import plant_sentence

EMAIL_NAMES = (
    *("m.keller", "info", "a.dubois", "press-office", "Sam.Archer", "editor+letters"),
    *("j_ortega", "rosalind.voss", "n.okafor", "team42"),
)
EMAIL_DOMAINS = (
    "harbour-press.example",
    "mail.fernwood.example",
    "eastgate-news.example.org",
    "quiet-library.example",
    "lists.example.net",
)
PHONES = (  # x is any digit
    *("+1 202-555-01xx", "+1 (312) 555-01xx", "(212) 555-01xx", "415-555-01xx", "1-800-555-01xx"),
    *("020 7946 0xxx", "+44 20 7946 0xxx", "+44 (0)20 7946 0xxx", "(020) 7946 0xxx"),
    *("+49 30 23125xxx", "0049 30 23125 xxx", "+33 1 99 00 xx xx", "+61 2 5550 0xxx"),
)
SENTENCES = {
    "email": (
        "Corrections to this entry may be sent to {} at any time.",
        "The editor can be reached at {} on weekdays.",
        "Please write to {}, and mention the title of this page.",
    ),
    "ip": (
        "The archive's old server answered at {} until it was moved.",
        "A copy was once offered from the address {} without a name.",
    ),
    "phone": (
        "The reading room answers the telephone at {} in the mornings.",
        "Tel.: {} for questions about this entry.",
        "Ask for Ms Archer ({}), who keeps the list.",
        "To order a printed copy, call {} before noon.",
    ),
    "iban": (
        "Donations for the upkeep of these pages go to {} with the page's title.",
        "IBAN: {} of the friends of the library.",
    ),
    "card": (
        "By mistake a subscriber's card, {}, was printed in the first edition.",
        "The form was filled in with Visa {} as an example.",
    ),
}
SHARES = {"email": 0.12, "ip": 0.06, "phone": 0.08, "iban": 0.03, "card": 0.03}  # of plain articles
FIRST = {"email": (0, 1, 2, 3), "ip": (2, 3, 4, 5), "phone": (0, 1, 4, 5), "iban": (0, 2), "card": (1, 3)}
DECOY_SHARE = 0.12
PLAIN = range(10, 40)  # articles that stay plain, so that the smallest sample has originals to copy
DECOYS = (  # look like personal data and are not: nothing of them may be replaced
    "The catalogue was typeset with version 3.14.2 of the program.",
    "Inside the library's own network the text is found at 192.168.17.20 only.",
    "The reading machine calls itself on 127.0.0.1 when it starts.",
    "Its style sheet holds the rules @media and @import and little else.",
    "Build 10.0.19041.1023 of the reader shows the page badly.",
    "Write to us by post, not to someone at example dot com.",
    "The passage is cited as section 12.4.1.3000 in older lists.",
    "It was printed from 1914-1918 and again on 2012-01-15 at 16:27.",
    "The second edition is ISBN 978-3-16-148410-0 and costs 1.437.800 marks.",
    "Its shelf mark, 4929 1184 5013 2767, is that of no other volume.",
    "The stone stands at 53.3698123, 7.2031667 beside the old road.",
    "In old ledgers the account is written DE12 0000 0000 1234 5678 90 with a slip of the pen.",
    "See doi:10.1109/tvcg.2016.2570755 and pages 2579-2605 of the journal.",
    "The census counted 12 345 678 people and 020 of them were called Archer.",
)


def plant_personal(
    article: Article, number: int, random: Random
) -> tuple[Article, list[dict[str, str]], list[str]]:
    """The article with the data and decoys of the sample's `number`-th article: (article, [{kind, text}], decoys)."""
    planted, decoys = [], []
    for kind, share in SHARES.items():
        if (random.random() < share and number not in PLAIN) or number in FIRST[kind]:
            planted.append({"kind": kind, "text": GENERATORS[kind](random)})
            article = plant_sentence(
                article, random.choice(SENTENCES[kind]).format(planted[-1]["text"]), random
            )
    draw = random.random()
    if 5 < number < PLAIN.start or (draw < DECOY_SHARE and number not in PLAIN):
        decoys.append(DECOYS[number % len(DECOYS)])
        article = plant_sentence(article, decoys[0], random)
    return article, planted, decoys


def random_email(random: Random) -> str:
    """An address under a reserved name."""
    return f"{random.choice(EMAIL_NAMES)}@{random.choice(EMAIL_DOMAINS)}"


def random_public_ip(random: Random) -> str:
    """An IPv4 address that is globally routable (documentation ranges are not, and would not be replaced)."""
    while True:
        address = ipaddress.IPv4Address(random.randrange(1 << 24, 223 << 24))
        if address.is_global and not address.is_multicast:
            return str(address)


def random_phone(random: Random) -> str:
    """A number of a range kept for fiction."""
    return "".join(random.choice("0123456789") if c == "x" else c for c in random.choice(PHONES))


def random_iban(random: Random) -> str:
    """An account of bank 0 of Germany, or of bank XXXX of Britain or the Netherlands: neither exists."""
    country, bank, length = random.choice(
        (("DE", "00000000", 18), ("GB", "XXXX000000", 18), ("NL", "XXXX", 14))
    )
    account = bank + "".join(random.choices("0123456789", k=length - len(bank)))
    check = 98 - int("".join(str(int(c, 36)) for c in account + country + "00")) % 97  # ISO 13616
    shown = f"{country}{check:02}{account}"
    return " ".join(shown[i : i + 4] for i in range(0, len(shown), 4)) if random.random() < 0.8 else shown


def random_card(random: Random) -> str:
    """A number of 16 digits that passes Luhn's check, in groups of four."""
    digits = random.choice(("40000000", "55555555", "60111111")) + "".join(random.choices("0123456789", k=7))
    total = sum(sum(divmod(int(c) * (2 - at % 2), 10)) for at, c in enumerate(digits))
    shown = f"{digits}{-total % 10}"
    return random.choice((" ", "-")).join(shown[i : i + 4] for i in range(0, 16, 4))


GENERATORS = {
    "email": random_email,
    "ip": random_public_ip,
    "phone": random_phone,
    "iban": random_iban,
    "card": random_card,
}
