"""Personal data out, everything else untouched."""

import pytest

from corpus.pii import find_pii, replace_pii


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to ann.b+news@mail.example.org.", "Write to <email>."),
        ("<ann@example.org>, (bob_2@x-y.co.uk); c@müller.de", "<<email>>, (<email>); <email>"),
        ("mailto:ann@example.org?subject=x", "mailto:<email>?subject=x"),
        ("seen from 8.8.8.8 and 93.184.216.34:443", "seen from <ip> and <ip>:443"),
        ("host 2606:4700:4700::1111 answers", "host <ip> answers"),
        ("two ann@a.org bob@b.org", "two <email> <email>"),
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
        "a@b and @handle and user@localhost and 3 @ 4.50",
        "std::vector and C++::x",
    ],
)
def test_what_is_nobodys_address_stays(text):
    assert replace_pii(text) == text


def test_a_replaced_text_holds_nothing_more_to_replace():
    text = "ann@a.org 8.8.8.8 " * 3
    assert find_pii(replace_pii(text)) == []
