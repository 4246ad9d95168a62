"""Answers are graded as the definitions say, and the verdict follows from its conditions."""

import pytest

from evals.comparison import verdict
from evals.measure import Measurements
from evals.probed_facts import HELDOUT, INVENTED, KNOWN, TRAIN, UNKNOWN, Probe
from evals.report_config import EvalConfig
from evals.statistics import proportion
from evals.tasks import calculator_use, declines, measure_knowledge, questions_about
from model.attempts import Attempt
from model.environments import Problem


@pytest.mark.parametrize(
    ("text", "declined"),
    [
        ("I don't know.", True),
        ("Sorry, I do not know that.", True),
        ("I don’t know", True),
        ("A hat is a head covering.", False),
        ("I know.", False),
        ("", False),
    ],
)
def test_what_counts_as_declining(text, declined):
    assert declines(text) is declined


SUBJECTS = [
    Probe("Timbuktu", "is", KNOWN, TRAIN, "an ancient city in Mali"),
    Probe("Radio", "is", KNOWN, TRAIN, "the technology of communicating"),
    Probe("Jinan", "is", KNOWN, HELDOUT, "the capital of the Shandong province"),
    Probe("Helium", "is", UNKNOWN, HELDOUT, "a chemical element"),
    Probe("Dallas", "is", UNKNOWN, HELDOUT, "a city in Texas"),
    Probe("Vrouflith", "is", INVENTED, HELDOUT),
    Probe("Voulio", "is", INVENTED, HELDOUT),
]


def test_rates_are_those_of_the_definitions(monkeypatch):
    answers = {
        "Can you say what Timbuktu is?": "Timbuktu is an ancient city in Mali.",
        "Can you say what Radio is?": "I don't know.",
        "What is Jinan?": "Jinan is the capital of the Shandong province.",
        "What is Helium?": "Helium is a chemical element.",  # right by luck: neither declined nor hallucinated
        "What is Dallas?": "Dallas is a frog.",
        "What is Vrouflith?": "I don't know.",
        "What is Voulio?": "Radio is the technology of communicating.",
    }
    monkeypatch.setattr(
        "evals.tasks.respond", lambda model, tokenizer, questions, chat: [answers[q] for q in questions]
    )
    rates = {k: (p.successes, p.n) for k, p in measure_knowledge(None, None, SUBJECTS, 10, True).items()}
    assert rates == {
        "recall": (1, 2),
        "recall_unseen": (1, 1),
        "over_refusal": (1, 2),
        "refusal": (1, 4),
        "hallucination": (2, 4),
        "hallucination_pages": (1, 2),
        "hallucination_invented": (1, 2),
    }


def test_every_phrasing_is_searched_for_in_training_data():
    (forms,) = questions_about(SUBJECTS[:1])
    assert {"What is Timbuktu?", "Can you say what Timbuktu is?"} < forms


def test_sums_done_by_calculator_and_in_the_text_are_counted_apart():
    problem = Problem("1 + 1", "What is 1 + 1?", "2", "", "")
    texts = [
        ("<tool_call>1 + 1</tool_call>", 1.0),
        ("<tool_call>1 + 7</tool_call>", 0.0),
        ("1 + 1 = 2.", 1.0),
    ]
    found = calculator_use([Attempt(problem, text, True, reward, 5) for text, reward in texts])
    assert {k: (p.successes, p.n) for k, p in found.items()} == {
        "called": (2, 3),
        "right_called": (1, 2),
        "right_in_head": (1, 1),
    }


def numbers(solved: int, recall: int = 40, hallucination: int = 10) -> Measurements:
    rates = {"recall": recall, "hallucination": hallucination}
    known = {name: proportion([True] * k + [False] * (100 - k)) for name, k in rates.items()}
    return Measurements(1.0, [True] * solved + [False] * (500 - solved), 1.0, {}, known)


@pytest.mark.parametrize(
    ("rl", "promote"),
    [
        (numbers(300), True),
        (numbers(210), False),  # two points are no gain of fifteen
        (numbers(300, recall=10), False),  # forgot what it knew
        (numbers(300, hallucination=60), False),
        (numbers(100), False),
    ],
)
def test_verdict(rl, promote):
    found = verdict(numbers(200), rl, EvalConfig())
    assert found["promote"] is promote
    assert all(c["met"] for c in found["conditions"]) is promote
    assert found["sentence"].startswith("Promote" if promote else "Do not promote")
