"""Definitions are found in the lines of a page, and the match rule accepts the fact and nothing less."""

import pytest

from evals.facts import definition, definitions, states


def fact_of(text):
    return definition("urn:1", "https://a.example/", text)


@pytest.mark.parametrize(
    ("text", "subject", "definiens"),
    [
        ("Hat\nA hat is a head covering which is worn for protection.", "a hat", "a head covering"),
        (
            "Timbuktu\n\nTimbuktu is an ancient city in Mali, north of the river.",
            "Timbuktu",
            "an ancient city in Mali",
        ),
        ("The tomato is a plant with an edible berry.", "the tomato", "a plant with an edible berry"),
        ("Ada (1815–1852) was an English mathematician and writer.", "Ada", "an English mathematician"),
        ("Mali, officially the Republic of Mali, is a landlocked country.", "Mali", "a landlocked country"),
    ],
)
def test_definition_is_found(text, subject, definiens):
    fact = fact_of(text)
    assert (fact.subject, fact.definiens) == (subject, definiens)
    assert text.startswith(fact.prefix) and text[len(fact.prefix) :].startswith(f" {definiens}")


@pytest.mark.parametrize(
    "text",
    [
        "It is a fine day in the old town.",
        "There is a house in the old town.",
        "Daily News\nCooking is the art of making food.",  # no word in common with the title above it
        "Hat\nHats keep heads warm.",
        "A plant.\nlowercase things is a broken sentence here",
        "",
    ],
)
def test_a_text_without_a_definition_gives_no_fact(text):
    assert fact_of(text) is None


def test_a_subject_is_asked_about_once():
    rows = [
        {"record_id": f"urn:{i}", "url": "u", "text": "A hat is a head covering for all."} for i in range(3)
    ]
    assert [f.record_id for f in definitions(rows)] == ["urn:0"]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("A hat is a head covering.", True),
        ("It is head covering, worn outside.", True),
        ("A HEAD  covering!", True),
        ("A head is a covering.", False),
        ("A head.", False),
        ("I don't know.", False),
        ("", False),
    ],
)
def test_match_rule(answer, right):
    assert states(answer, "a head covering") is right
