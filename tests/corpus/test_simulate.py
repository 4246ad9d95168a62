"""The simulated effect of another threshold is the effect of cleaning with that threshold."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from corpus.clean import clean_crawl
from corpus.config import CleanConfig
from corpus.ledger import read_ledger
from corpus.rules.quality import DEFAULT_THRESHOLDS, RULES
from corpus.rules.simulate import simulate, verdicts
from corpus.rules.values import VALUES_SCHEMA
from corpus.warc_writer import WarcWriter

ENGLISH = (
    "the of and to in that was with they have from this which were there would about people house water "
    "time river stone winter garden letter morning village window summer harbour family question market "
    "evening"
)
GERMAN = (
    "der die das und nicht mit von auf für eine einen wird werden haben auch nach über unter zwischen "
    "Leute Haus Wasser Zeit Fluss Winter Garten Brief Morgen Dorf Fenster Sommer Hafen Familie Frage "
    "Markt Abend Straße"
)
DEFECTS = (
    "{ code }",
    "Read our privacy policy for more about it.",
    "Menu",
    "- a point in a list",
    "Please enable JavaScript now.",
    "12 345 67,8 90 % 11 (12) 13",
    "and so it went on ...",
    "the [1] end of it is here.",
    "#one #two #three #four #five",
)


def page(rng: random.Random) -> str:
    words = rng.choice((ENGLISH, ENGLISH, GERMAN)).split()
    words = rng.sample(words, rng.randint(12, len(words)))
    lines = [
        " ".join(rng.choices(words, k=rng.randint(4, 14))).capitalize() + rng.choice((".", ".", "?", ""))
        for _ in range(rng.randint(4, 14))
    ]
    lines += [rng.choice(DEFECTS) for _ in range(rng.choice((0, 0, 1, 3, 8)))]
    lines += rng.choices(lines, k=rng.choice((0, 0, 0, 1, 3)))
    rng.shuffle(lines)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def crawl(tmp_path_factory) -> list[tuple[str, Path]]:
    """Two archives of plain-text pages with every kind of defect; some pages twice."""
    rng, folder = random.Random(5), tmp_path_factory.mktemp("crawl")
    texts = [page(rng) for _ in range(360)]
    texts += rng.choices(texts, k=60)
    for name in ("a", "b"):
        with WarcWriter(folder / f"{name}.warc.gz") as writer:
            for number, text in enumerate(texts[name == "b" :: 2]):
                block = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + text.encode()
                uri, record = f"http://{name}.example/{number}", f"urn:test:{name}:{number}"
                writer.write("response", record, "2026-01-01T00:00:00Z", block, url=uri)
    return [(path.name, path) for path in sorted(folder.glob("*.warc.gz"))]


BASE = {"languages": ["en", "de"], "language_score": 0.9, "record_values": True}


def cleaned(crawl, folder: Path, **settings) -> Path:
    config = CleanConfig.from_dict(BASE | settings)
    clean_crawl(crawl, folder / "out", folder / "work", config, "test", workers=0)
    return folder / "out"


@pytest.fixture(scope="module")
def corpus(crawl, tmp_path_factory) -> Path:
    return cleaned(crawl, tmp_path_factory.mktemp("base"))


def verdicts_of(folder: Path) -> dict[str, str]:
    """record -> the rule that dropped it before deduplication, or ''."""
    rows = read_ledger(folder).to_pylist()
    return {
        row["record_id"]: (row["rule"] or "") if row["stage"] in ("quality", "language") else ""
        for row in rows
    }


CHANGES = [
    ("gopher_letters", 0.9),
    ("gopher_letters", None),
    ("gopher_min_words", 90),
    ("gopher_dup_5_grams", 0.02),
    ("gopher_top_2_gram", 0.05),
    ("c4_min_sentences", 9),
    ("c4_curly_bracket", None),
    ("fineweb_line_ends", 0.7),
    ("fineweb_dup_line_chars", 0.1),
    ("mc4_long_lines", 1),
    ("language_score", 0.98),
    ("language_score", 0.1),
]


@pytest.mark.parametrize(("rule", "threshold"), CHANGES)
def test_the_simulation_predicts_what_cleaning_again_does(crawl, corpus, tmp_path, rule, threshold):
    change = {rule: threshold} if rule == "language_score" else {"thresholds": {rule: threshold}}
    again = cleaned(crawl, tmp_path, **change)
    config = CleanConfig.from_dict(BASE | change)
    for part in sorted((corpus / "values").glob("*.parquet")):
        values = pq.read_table(part)
        ids = pq.read_table(corpus / "ledger" / part.name)["record_id"].take(values["row"]).to_pylist()
        renamed = {"language_score": "uncertain_language"}
        predicted = [renamed.get(name, name) for name in verdicts(values, config)]
        then = verdicts_of(again)
        assert predicted == [then[record] for record in ids]
    found, before, after = simulate([corpus], rule, threshold), verdicts_of(corpus), verdicts_of(again)
    kept = {row["record_id"] for row in read_ledger(corpus).to_pylist() if row["outcome"] == "kept"}
    assert found.kept_now_dropped == sum(bool(after[record]) for record in kept)
    assert found.dropped_now_passed == sum(bool(before[r]) and not after[r] for r in before)
    assert found.dropped_later_now_here == sum(not before[r] and bool(after[r]) for r in set(before) - kept)
    name = "uncertain_language" if rule == "language_score" else rule
    moved = [(before[r], after[r]) for r in before if before[r] and after[r] and before[r] != after[r]]
    assert sum(found.taken_over_by.values()) == sum(was == name for was, _ in moved)
    assert sum(found.taken_over_from.values()) == sum(now == name for _, now in moved)
    assert found.kept_now_dropped + found.dropped_now_passed + len(moved) > 0  # the change has an effect


def test_a_threshold_of_one_language_leaves_the_others_alone(corpus):
    found = simulate([corpus], "gopher_min_words", 90, language="de")
    assert set(found.by_language) == {"de"}
    assert found.kept_now_dropped < simulate([corpus], "gopher_min_words", 90).kept_now_dropped


def test_every_page_that_reached_the_rules_has_a_value_of_every_rule(corpus, crawl, tmp_path):
    assert [field.name for field in VALUES_SCHEMA][5:] == [rule.name for rule in RULES]
    measured = sum(pq.read_metadata(part).num_rows for part in (corpus / "values").glob("*.parquet"))
    rows = read_ledger(corpus).to_pylist()
    assert measured == sum(row["rule"] not in ("other_language", "no_main_text") for row in rows) > 300
    plain = cleaned(crawl, tmp_path, record_values=False)
    assert not (plain / "values").exists()
    same = [column for column in read_ledger(plain).column_names if column != "config_hash"]
    assert read_ledger(plain).select(same).equals(read_ledger(corpus).select(same))
    assert pq.read_table(plain / "documents").equals(pq.read_table(corpus / "documents"))


def test_questions_that_the_ledger_cannot_answer_are_refused_with_a_sentence(corpus, crawl, tmp_path):
    with pytest.raises(ValueError, match="no rule named 'gopher_typo'"):
        simulate([corpus], "gopher_typo", 1)
    for setting in sorted(set(DEFAULT_THRESHOLDS) - {rule.name for rule in RULES}):
        with pytest.raises(ValueError, match="clean the crawl again"):
            simulate([corpus], setting, 1)
    plain = cleaned(crawl, tmp_path, record_values=False)
    with pytest.raises(ValueError, match="--all-values"):
        simulate([plain], "gopher_letters", 0.7)
    with pytest.raises(FileNotFoundError, match="not a cleaned corpus"):
        simulate([tmp_path / "nothing"], "gopher_letters", 0.7)


def test_a_corpus_cleaned_with_other_rules_is_refused(corpus, tmp_path):
    import shutil

    copy = shutil.copytree(corpus, tmp_path / "copy")
    stats = json.loads((copy / "stats.json").read_text())
    stats["rules"]["thresholds"] = {"gopher_min_words": 100}
    (copy / "stats.json").write_text(json.dumps(stats))
    with pytest.raises(ValueError, match="does not agree with this version's rules"):
        simulate([copy], "gopher_letters", 0.7)


def test_the_command_line_simulates_from_the_ledger(root, corpus):
    command = [sys.executable, "stemma.py", "corpus", "simulate", "--rule", "gopher_min_words"]
    command += ["--crawl", str(corpus)]
    done = subprocess.run([*command, "--threshold", "90", "--json"], cwd=root, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert answer["kept_now_dropped"] == simulate([corpus], "gopher_min_words", 90).kept_now_dropped > 0
    assert all(re.match("http://[ab].example/", e["url"]) for e in answer["examples"]["kept_now_dropped"])
    done = subprocess.run([*command, "--threshold", "off"], cwd=root, capture_output=True, text=True)
    assert "gopher_min_words at off instead of 50" in done.stdout, done.stderr
    done = subprocess.run([*command, "--threshold", "many"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "give a number, or 'off'" in done.stderr


def test_the_pages_fail_many_rules(corpus):
    counts = Counter(verdicts_of(corpus).values())
    assert len(counts) >= 8 and counts[""] > 60, counts
