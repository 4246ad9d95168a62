"""Personal data is replaced, everything else is unchanged."""

import pytest

from corpus.config import CleanConfig
from corpus.pii import find_pii, is_card, is_iban, replace_pii


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to ann.b+news@mail.example.org.", "Write to <email>."),
        ("<ann@example.org>, (bob_2@x-y.co.uk); c@müller.de", "<<email>>, (<email>); <email>"),
        ("mailto:ann@example.org?subject=x", "mailto:<email>?subject=x"),
        ("seen from 8.8.8.8 and 93.184.216.34:443", "seen from <ip> and <ip>:443"),
        ("host 2606:4700:4700::1111 answers", "host <ip> answers"),
        ("two ann@a.org bob@b.org", "two <email> <email>"),
        ("info(at)example.org, a.b [at] example [dot] co.uk", "<email>, <email>"),
    ],
)
def test_addresses_become_placeholders(text, clean):
    assert replace_pii(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "private 192.168.1.1, 10.0.0.7, 172.16.5.4, 127.0.0.1 and ::1",
        "documentation 192.0.2.1 and 2001:db8::1",
        "version 8.8.4.1 and v1.2.3.4, Chrome/99.0.4844.51",
        "section 4.3.2.1 of the act",
        "12:30:45 and 1.2.3.4.5 and 300.1.2.3",
        "the picture logo@2x.png, the account @ann@social.example, looked (at) him",
        "a@b and @handle and user@localhost and 3 @ 4.50",
        "std::vector and C++::x",
    ],
)
def test_what_is_not_a_personal_address_is_unchanged(text):
    assert replace_pii(text) == text


# Numbers from the ranges that regulators reserve for fiction, and from banks' and issuers' test ranges.
@pytest.mark.parametrize(
    ("language", "host", "text", "clean"),
    [
        ("", "", "Ring +49 30 23125 123 or +1 (202) 555-0143!", "Ring <phone> or <phone>!"),
        ("", "", "(+44 (0)20 7946 0958)", "(<phone>)"),
        ("de", "", "Tel.: 030/23125-0, Fax -99", "Tel.: <phone>, Fax -99"),
        ("de", "", "20459 Hamburg\n030 23125-40\nMontags", "20459 Hamburg\n<phone>\nMontags"),
        ("de", "", "Telefon: 0049 30 23125123", "Telefon: <phone>"),
        ("fr", "", "le 01 99 00 12 34 ou par courriel", "le <phone> ou par courriel"),
        ("en", "", "(212) 555-0187, 415-555-0156", "<phone>, <phone>"),
        ("en", "", "602-555-0133 (phone)", "<phone> (phone)"),
        ("en", "", "please call 0800 138 1016 or 18001 0800 138 1016", "please call <phone> or <phone>"),
        ("en", "x.co.uk", "the desk, 020 7946 0958, is open", "the desk, <phone>, is open"),
        ("pl", "", "pod numerem (22 545 37 26) mozna", "pod numerem (<phone>) mozna"),
        ("ru", "", "тел. (343) 379-00-33, 379-00-34", "тел. <phone>, <phone>"),
        ("zh", "", "电话：010-65901655、65901656", "电话：<phone>、<phone>"),
        ("zh", "", "服務專線038-226959及0800-625748洽詢", "服務專線<phone>及<phone>洽詢"),
        ("el", "", "τηλ: 2104414718)", "τηλ: <phone>)"),
        ("", "", "IBAN: DE75 5121 0800 1245 1261 99, BIC", "IBAN: <iban>, BIC"),
        ("", "", "to GB33BUKB20201555555555.", "to <iban>."),
        ("", "", "FR14 2004 1010 0505 0001 3M02 606 and more", "<iban> and more"),
        ("", "", "card 4111 1111 1111 1111 or 3782-822463-10005", "card <card> or <card>"),
        ("", "", "Visa 4111111111111111", "Visa <card>"),
    ],
)
def test_personal_numbers_become_placeholders(language, host, text, clean):
    assert replace_pii(text, language=language, host=host) == clean


@pytest.mark.parametrize(
    "text",
    [
        "from 1914-1918 and 2012/2013, 2012-01-15 16:27:23 and 12.01.2012 (15:04)",
        "on 04/11/11-11:03, 28.1.2022 - 19:00, Tel Aviv 1948 - 1967",
        "cost 1.437.800 euro, 12 345 678 people",
        "ISBN 978-3-16-148410-0, ISSN 2105-3030, doi:10.1109/tvcg.2016.2570755, PMID 20175497",
        "pages 2579-2605, nos. 325 278 111-154 161-165",
        "at 53.369889, 7.203167 and 49.988150; 8.840300",
        "https://example.org/posts/2800731780195723 and /id/0231251234/",
        "KB3075249, ФС77-49726, order no. 2005325581, iPhone 12 2020-2021",
        "version 0.0.0-20180720214833, build 1194817730",
        "the network answers the telephone at 192.168.17.20",
        "rose 110.2-0.18 % to 3078.02 +0.24, from 00036734 to 00036735",
        "DE12 0000 0000 1234 5678 90 and 4929 1184 5013 2767 are mistyped",
        "Hotel 2010-2011, Kapitel 3.4.5.6.7.8, Artikel 123 456 789",
    ],
)
@pytest.mark.parametrize("language", ["en", "de", "fr", "zh"])
def test_other_numbers_are_unchanged(text, language):
    assert replace_pii(text, language=language) == text


def test_check_digits_are_checked():
    """Every single wrong digit is detected, as ISO 7064 and Luhn's check guarantee."""
    for valid, check in (("GB33BUKB20201555555555", is_iban), ("4111111111111111", is_card)):
        assert check(valid)
        for at, digit in enumerate(valid):
            if digit.isdigit() and at > 0:
                assert not any(check(valid[:at] + d + valid[at + 1 :]) for d in "0123456789" if d != digit)


def test_only_the_configured_kinds_are_replaced():
    text = "ann@a.org 8.8.8.8 +49 30 23125123"
    assert replace_pii(text, kinds=("ip",)) == "ann@a.org <ip> +49 30 23125123"
    assert replace_pii(text, kinds=()) == text
    with pytest.raises(ValueError, match="no kind named name"):
        CleanConfig(remove_pii=("name",))


def test_a_result_does_not_depend_on_earlier_texts():
    texts = ["Tel. 030 23125123", "x 030 23125123", "ann@a.org", "040 374709-40 or 040 374709-41"]
    once = [replace_pii(text, language="de") for text in texts]
    assert [replace_pii(text, language="de") for text in reversed(texts)] == once[::-1]


@pytest.mark.parametrize(
    "text",
    [
        "ann@a.org 8.8.8.8 +49 30 23125 123, DE75 5121 0800 1245 1261 99; " * 3,
        "Tel 030 23125123, Mo-Fr 8.30-12.30 und 013570408676, Karte 4111 1111 1111 1111 4111111111111111",
        "Tel. 030 23125123 | Berlin 030 23125124 | Bonn 0228 99 12 34 56 78 90 12 34 030 23125125",
    ],
)
def test_a_replaced_text_holds_nothing_more_to_replace(text):
    assert find_pii(replace_pii(text, language="de"), language="de") == []
