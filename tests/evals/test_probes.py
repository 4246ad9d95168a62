"""What is asked, which status the answer gives, and that nothing held out gets into training conversations."""

import json
import re

import pytest

from core.errors import ConfigError
from evals import conversations
from evals.facts import normalize
from evals.mixture_config import MixtureConfig
from evals.probed_facts import HELDOUT, INVENTED, KNOWN, TRAIN, UNKNOWN, UNSURE, Probe
from evals.probes import heldout_mixture, split_of, status_of, training_mixture, write_conversations
from model.environments import Environment


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        (" an ancient city in Mali. It lies", KNOWN),
        (" an  Ancient city, in Mali", KNOWN),
        (" an ancient city in Peru", UNSURE),
        (" the city of Mali", UNSURE),
        (" a chemical element", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_verdicts(completion, verdict):
    assert status_of(completion, "an ancient city in Mali") == verdict


@pytest.fixture(scope="module")
def judged():
    """Three hundred subjects of every verdict, split as the real ones are."""
    probes = []
    for i in range(300):
        status = (KNOWN, UNSURE, UNKNOWN, INVENTED)[i % 4]
        name = f"Subject{i}"
        probes.append(Probe(name, "is", status, split_of(name, 20), f"a thing of kind {i}", "", f"urn:{i}"))
    return probes


def test_training_asks_only_training_subjects_and_answers_only_what_is_known(judged):
    rows = list(training_mixture(judged, MixtureConfig(worked=30, called=20), seed=0))
    assert {row.kind for row in rows} == {"knowledge", "refusal", "identity", "arithmetic", "calculator"}
    status = {p.subject: (p.status, p.split) for p in judged}
    asked = [
        (row, re.search(r"Subject\d+", row.messages[0][1])[0])
        for row in rows
        if row.kind in ("knowledge", "refusal")
    ]
    for row, subject in asked:
        assert status[subject][1] == TRAIN
        assert (row.kind == "knowledge") == (status[subject][0] == KNOWN)
        assert status[subject][0] != UNSURE
        assert row.record_id == f"urn:{subject.removeprefix('Subject')}"
        assert (row.messages[1][1] == conversations.REFUSAL) == (row.kind == "refusal")


def test_no_question_is_in_training_and_held_out(judged):
    config = MixtureConfig(worked=300, called=200)
    train = {row.messages[0][1] for row in training_mixture(judged, config, 0)}
    heldout = {row.messages[0][1] for row in heldout_mixture(judged, config, 0)}
    assert heldout and not train & heldout
    assert not any(q.startswith(conversations.HELDOUT_QUESTION.split("{")[0]) for q in train)


def test_the_held_out_share_of_subjects_is_about_the_configured_one():
    sides = [split_of(f"name {i}", 20) for i in range(2000)]
    assert 0.17 < sides.count(HELDOUT) / 2000 < 0.23
    assert split_of("The Hat", 20) == split_of("the hat", 20)


def test_sums_are_solved_in_one_of_two_ways_for_questions_of_the_same_form():
    rows = list(conversations.about_problems(Environment(), 20, 10, seed=1, split=TRAIN))
    assert [row.kind for row in rows] == ["arithmetic"] * 20 + ["calculator"] * 10
    assert all(("<tool_call>" in row.messages[1][1]) == (row.kind == "calculator") for row in rows)
    assert len({row.messages[0][1] for row in rows}) == 30


def test_invented_names_occur_nowhere_in_the_crawl():
    first = conversations.invented_names(50, set(), 0)
    words = {word for name in first[:25] for word in normalize(name).split()}
    again = conversations.invented_names(50, words, 0)
    assert not words & {word for name in again for word in normalize(name).split()}
    assert len(set(again)) == 50 and first == conversations.invented_names(50, set(), 0)


def test_parquet_of_conversations_is_the_same_bytes_and_reads_through_datasets(judged, tmp_path):
    from datasets import load_dataset

    rows = list(training_mixture(judged, MixtureConfig(worked=5, called=5), 0))
    write_conversations(tmp_path / "a.parquet", rows)
    write_conversations(tmp_path / "b.parquet", rows)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    read = load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert [row["messages"] for row in read] == [row.row()["messages"] for row in rows]
    assert [row["record_id"] for row in read] == [row.record_id for row in rows]


def test_own_conversations_are_read_from_jsonl(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        json.dumps({"question": "Ping?", "answer": "Pong."})
        + "\n"
        + json.dumps({"question": "A?", "answer": "B."})
    )
    rows = list(conversations.from_dataset({"path": str(path), "limit": 1}, tmp_path / "cache"))
    assert [row.messages for row in rows] == [(("user", "Ping?"), ("assistant", "Pong."))]
    assert rows[0].source == "mine.jsonl#0"
    path.write_text(json.dumps({"text": "no turns here"}))
    with pytest.raises(ValueError, match="neither"):
        list(conversations.from_dataset(str(path), tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="extra_datasets"):
        list(conversations.from_dataset(str(tmp_path / "missing.jsonl"), tmp_path / "cache"))


def test_a_share_that_holds_out_nothing_is_an_error():
    with pytest.raises(ConfigError, match="not between"):
        MixtureConfig(heldout_percent=0)
