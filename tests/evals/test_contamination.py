"""What evaluations ask is kept out of what is trained on, and nothing else is."""

import gzip
import json

import pyarrow.parquet as pq
import pytest

from core.errors import ConfigError
from corpus.ledger import DOCUMENT_SCHEMA, LEDGER_SCHEMA, write_parquet
from evals.contamination import OverlapIndex, describe_overlaps, exclude_overlaps, read_examples
from evals.decontamination_config import DecontaminationConfig
from evals.sets import Example, examples
from model.data.documents import left_out, read_documents

QUESTION = (
    "A farmer walks nine miles to market with forty seven ducks and sells every third one for two silver coins; "
    "how many coins does he carry home in the evening?"
)
PROSE = (
    "The harbour was quiet that morning, and the boats lay on the mud as they had for a hundred years. "
    "Children ran along the wall with their shoes in their hands. An old man told them that the water would come "
    "back before noon, and of course it did. Nobody had ever asked him how he knew that it would. "
    "He had been a sailor once, and then a teacher, and then for a long time nothing at all. "
)


def example(text: str, number: int = 0) -> Example:
    return Example("quiz", number, "question", text)


def test_a_copied_question_is_found_in_other_case_and_punctuation():
    overlap = OverlapIndex([example(QUESTION)])
    (match,) = overlap.find(PROSE + QUESTION.upper().replace(";", " --") + PROSE)
    assert (match.example.name, match.share) == ("quiz/0.question", 1.0)


def test_less_than_half_of_a_question_is_no_overlap():
    words = QUESTION.split()
    overlap = OverlapIndex([example(QUESTION)])
    assert overlap.find(" ".join(words[: len(words) // 2 - 1])) == []
    (match,) = overlap.find(" ".join(words[: len(words) // 2 + 2]))
    assert 0.5 < match.share < 0.6


def test_words_in_common_in_another_order_are_no_overlap():
    shuffled = " ".join(sorted(QUESTION.split()))
    assert OverlapIndex([example(QUESTION)]).find(shuffled) == []


def test_short_examples_must_match_whole_and_the_shortest_are_not_searched_for():
    overlap = OverlapIndex([example("What is 8 + 0 + 1?"), example("2 + 2 =", 1)])
    assert [m.example.number for m in overlap.find("He asked: what is 8 + 0 + 1? And")] == [0]
    assert overlap.find("what is 8 - 0 + 1? What is 8 + 0 + 1 + 2? and 2 + 2 =") == []
    assert [e.number for e in overlap.too_short] == [1]


def row_of(schema, **known):
    """A row of a schema, with what is not given empty."""
    empty = {"string": "", "double": 0.0, "int64": 0}
    return {f.name: known.get(f.name, None if f.nullable else empty[str(f.type)]) for f in schema}


@pytest.fixture
def corpora(tmp_path):
    """Two cleaned corpora of five pages each, of the same record ids; page 2 of the second holds the question."""
    folders = []
    for crawl in ("first", "second"):
        pages = [
            {
                "crawl": crawl,
                "record_id": f"urn:{n}",
                "url": f"https://{crawl}.example/{n}",
                "outcome": "kept",
            }
            | {"text": PROSE + (QUESTION if (crawl, n) == ("second", 2) else f"Page {n}.")}
            for n in range(5)
        ]
        for kind, schema in (("documents", DOCUMENT_SCHEMA), ("ledger", LEDGER_SCHEMA)):
            (tmp_path / crawl / kind).mkdir(parents=True)
            rows = [row_of(schema, **page) for page in pages]
            write_parquet(rows, schema, tmp_path / crawl / kind / "00000.parquet")
        folders.append(tmp_path / crawl)
    return folders


def test_the_document_that_holds_an_example_is_left_out_and_no_other(corpora, tmp_path):
    config, out = DecontaminationConfig({}), tmp_path / "out"
    asked = [example(QUESTION), example("Who has ever seen it there at all?", 1)]
    found = exclude_overlaps(corpora, asked, config, out, workers=2)
    assert found == {
        "documents": 1,
        "eval_sets": {"quiz": {"searched": 2, "too_short": 0, "found": 1, "documents": 1}},
    }
    (row,) = pq.read_table(out / "ledger" / "eval_overlap.parquet").to_pylist()
    assert (row["url"], row["outcome"], row["rule"]) == (
        "https://second.example/2",
        "dropped",
        "eval_overlap",
    )
    assert (row["detail"], row["value"], row["threshold"]) == ("quiz/0.question", 1.0, 0.5)
    assert left_out(out) == {("second", "urn:2")}
    read = [text for batch in read_documents(corpora, ["text"], out) for text in batch["text"]]
    assert len(read) == 9
    every = [text for batch in read_documents(corpora, ["text"]) for text in batch["text"]]
    named = [(str(i), text) for i, text in enumerate(every)]
    assert list(describe_overlaps(named, out, config)) == ["7 covers 100% of quiz/0.question"]
    assert list(describe_overlaps([("x", text) for text in read], out, config)) == []


def test_without_overlap_nothing_is_left_out(corpora, tmp_path):
    out = tmp_path / "out"
    assert exclude_overlaps(corpora, [], DecontaminationConfig({}), out, workers=0) == {
        "documents": 0,
        "eval_sets": {},
    }
    assert left_out(out) == frozenset()
    assert read_examples(out / "examples.parquet") == []


def test_sets_are_read_from_local_files_whatever_the_case_of_their_columns(tmp_path):
    rows = [{"question": f"How much is {n} and {n}?", "answer": str(2 * n)} for n in range(3)]
    with gzip.open(tmp_path / "own.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "truth.csv").write_text("Type,Question\na,What happens?\n")
    spec = {
        "mine": {"path": "own.jsonl.gz", "columns": ["answer"]},
        "gsm8k": "own.jsonl.gz",
        "truthfulqa": "truth.csv",
    }
    found = list(examples(spec, tmp_path))
    assert [e.name for e in found if e.eval_set == "mine"] == [f"mine/{n}.answer" for n in range(3)]
    assert [e.name for e in found if e.eval_set == "gsm8k"][:2] == ["gsm8k/0.question", "gsm8k/0.answer"]
    assert [e.text for e in found if e.eval_set == "truthfulqa"] == ["What happens?"]


def test_the_held_out_sums_are_a_set_of_their_own():
    found = list(examples({"sums": None}, None))
    assert len({e.text for e in found}) == 600


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"unheard": None}, "no set of that name is known"),
        ({"gsm8k": "nowhere.jsonl"}, "no readable file"),
        ({"mine": {"path": "some.csv", "columns": ["query"]}}, "no column query; there are a"),
    ],
)
def test_a_set_that_cannot_be_read_is_an_error_in_one_sentence(tmp_path, spec, message):
    (tmp_path / "some.csv").write_text("a\n1\n")
    with pytest.raises(ConfigError, match=message):
        list(examples(spec, tmp_path))


def test_real_evaluations_are_found_when_copied_into_text(shared_data):
    files = {
        "gsm8k": "gsm8k-test.jsonl.gz",
        "humaneval": "HumanEval.jsonl.gz",
        "truthfulqa": "TruthfulQA.csv.gz",
    }
    found = list(
        examples({name: str(shared_data / "evals" / file) for name, file in files.items()}, shared_data)
    )
    overlap = OverlapIndex(found)
    for wanted in overlap.examples[::97]:
        assert wanted.text in {m.example.text for m in overlap.find(f"{PROSE} {wanted.text} {PROSE}")}
    assert overlap.find(PROSE) == []
