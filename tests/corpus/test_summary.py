"""The reports are consistent: the funnel, the distributions, the plots, the pages drawn."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from small_web import files_of

from corpus.clean import CleanConfig, clean_crawl
from corpus.dedup import duplicates
from corpus.ledger import document_dataset, read_ledger
from corpus.limits import DETAILS
from corpus.raw_records import FAULTS
from corpus.report import charts, plots, summary
from corpus.report.samples import draw, measured, read_text
from corpus.rules.meaning import meaning, reason
from corpus.rules.quality import RULES


@pytest.fixture(scope="module")
def crawl(sample) -> dict[str, Path]:
    """The files of a small web with ground truth, by name."""
    return dict(files_of(sample))


@pytest.fixture(scope="module")
def cleaned(crawl, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cleaned")
    clean_crawl(list(crawl.items()), folder / "out", folder / "work", CleanConfig(), "sample", workers=0)
    return folder / "out"


@pytest.fixture(scope="module")
def stats(cleaned) -> dict:
    return json.loads((cleaned / "stats.json").read_text())


def test_the_distributions_are_those_of_the_ledger_and_the_documents(cleaned, stats):
    rows = read_ledger(cleaned).to_pylist()
    documents = document_dataset(cleaned).to_table(columns=["host", "language_score"]).to_pylist()
    scores = stats["language_scores"]
    assert sum(bin["kept"] for bin in scores.values()) == len(documents) == stats["documents"]
    assert sum(bin["dropped"] for bin in scores.values()) == sum(row["stage"] == "language" for row in rows)
    high = sum(document["language_score"] >= 0.95 for document in documents)
    assert scores["0.95+"]["kept"] == high > 0
    read = Counter(row["host"] for row in rows)
    kept = Counter(document["host"] for document in documents)
    assert (stats["hosts"]["read"], stats["hosts"]["kept"]) == (len(read), len(kept))
    for name, counts in (("most_read", read), ("most_kept", kept)):
        first = next(iter(stats["hosts"][name]))
        assert counts[first] == max(counts.values())
        assert all(
            seen == {"records": read[host], "kept": kept[host]} for host, seen in stats["hosts"][name].items()
        )
    assert sum(stats["words_per_document"].values()) == stats["documents"]


def test_every_step_of_the_funnel_loses_the_sum_of_its_reasons(stats, capsys):
    steps = summary.funnel(stats)
    assert [step["in"] for step in steps[1:]] == [step["left"] for step in steps[:-1]]
    assert steps[0]["in"] == stats["records"] and steps[-1]["left"] == stats["kept"]
    assert all(step["in"] - step["left"] == sum(step["reasons"].values()) for step in steps)
    summary.print_funnel(stats, Console(width=80, color_system=None))
    shown, text = capsys.readouterr().out, summary.markdown(stats)
    assert max(len(line) for line in shown.splitlines()) <= 80
    for step in steps:
        assert step["name"] in shown and step["name"] in text
        assert all(rule in text for rule in step["reasons"])


@pytest.mark.parametrize("draw_plot", [plots.plot_funnel, plots.plot_contents])
def test_the_plots_are_small_and_deterministic(stats, draw_plot):
    picture = draw_plot(stats)
    assert picture.startswith(b"\x89PNG") and len(picture) < 60_000
    assert picture == draw_plot(stats)


def test_an_empty_corpus_can_be_plotted(stats):
    empty = {**stats, "languages": {}, "other_languages": {}, "records": 0, "documents": 0, "bytes": 0}
    empty["hosts"] = {"read": 0, "kept": 0, "most_read": {}, "most_kept": {}}
    empty["words_per_document"] = dict.fromkeys(stats["words_per_document"], 0)
    assert plots.plot_contents(empty) and summary.median_length(empty) == "unknown"


def test_tokens_are_counted_with_a_tokenizer_and_estimated_without(stats, cleaned, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    assert summary.tokens(stats)[0] == stats["bytes"] / 4
    counted, how = summary.tokens(stats, cleaned, tmp_path / "tokenizer.json")
    texts = document_dataset(cleaned).to_table(columns=["text"])["text"].to_pylist()
    assert counted == pytest.approx(sum(len(re.findall(r"\w+|[^\w\s]+", text)) for text in texts))
    assert "measured" in how


def test_twenty_pages_a_rule_are_drawn_whatever_the_order_of_the_rows(cleaned, tmp_path):
    drawn, share = draw(cleaned, per_rule=20)
    rows = read_ledger(cleaned)
    ended = Counter((r["stage"], r["rule"]) if r["outcome"] != "kept" else ("", "") for r in rows.to_pylist())
    assert share == 1 and {(d.stage, d.rule): d.pages for d in drawn} == ended
    assert all(len(d.rows) == min(20, d.pages) == len({r["record_id"] for r in d.rows}) for d in drawn)
    assert all((row["stage"], row["rule"]) == (d.stage, d.rule) for d in drawn if d.rule for row in d.rows)

    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    (tmp_path / "ledger").mkdir()
    shuffled = rows.take(pc.sort_indices(rows["record_id"]))
    pq.write_table(shuffled, tmp_path / "ledger" / "00000.parquet")
    again, _ = draw(tmp_path, per_rule=20)
    assert [[r["record_id"] for r in d.rows] for d in again] == [
        [r["record_id"] for r in d.rows] for d in drawn
    ]
    assert draw(cleaned, seed=1)[0][0].rows != drawn[0].rows or drawn[0].pages <= 20


def test_a_page_read_back_from_the_crawl_is_the_page_that_was_kept(crawl, cleaned):
    untouched = [row for row in draw(cleaned)[0][-1].rows if row["rule"] is None]
    texts = {d["record_id"]: d["text"] for d in document_dataset(cleaned).to_table().to_pylist()}
    assert untouched
    for row in untouched:
        text, note = read_text(row, crawl)
        assert note == "" and set(re.findall(r"\w+", texts[row["record_id"]])) <= set(
            re.findall(r"\w+", text)
        )


def test_what_cannot_be_read_back_says_why(crawl, cleaned):
    row = read_ledger(cleaned).to_pylist()[0]
    assert read_text(row, {}) == ("", "not in a file that is here")
    assert "cannot be read again" in read_text(row, {row["warc_file"]: "/nowhere.warc.gz"})[1]
    assert read_text(row | {"rule": "cpu_time"}, crawl) == ("", "not read again: it stopped the parser")


def test_every_rule_has_a_meaning_in_words(cleaned):
    rules = {row["rule"] for row in read_ledger(cleaned).to_pylist() if row["rule"]}
    assert [rule for rule in sorted(rules | {rule.name for rule in RULES}) if not meaning(rule)] == []
    assert meaning("no_such_rule") == ""


def test_the_rules_written_out_in_the_code_have_a_meaning(root):
    """Those of failed, dropped and changed records, as the modules that end a record name them."""
    ends = re.compile(
        r"""(?:Outcome\(\s*ledger\.\w+,\s*"\w+",|BadBody\(|BrokenRecord\([^)]*place,|rule=|"rule":)\s*"(\w+)\""""
    )
    code = "".join(path.read_text() for path in (root / "corpus").glob("*.py"))
    found = set(ends.findall(code)) | set(DETAILS) | set(FAULTS) | set(duplicates.RULES.values())
    assert {"bad_digest", "http_status", "too_little_left", "replaced", "memory"} <= found
    assert sorted(rule for rule in found if not meaning(rule)) == []


def test_a_step_reports_what_it_changed_in_pages_that_it_keeps():
    step = {"stage": "dedup", "touched": 1200, "reasons": {"near_duplicate": 3}}
    assert summary.reasons_text(step) == "near_duplicate 3, repeats taken out in 1,200 pages"


def test_a_reason_is_a_readable_sentence():
    row = {"stage": "quality", "rule": "gopher_letters", "value": 0.712345, "threshold": 0.8}
    assert reason(row) == "quality: gopher_letters, measured 0.7123, below the limit of 0.8"
    status = {"stage": "read", "rule": "http_status", "value": 404.0, "threshold": 200.0}
    assert reason(status) == "read: http_status 404 instead of 200"
    assert reason({"stage": "read", "rule": "empty", "value": 0.0, "threshold": 1.0}) == "read: empty"


def test_recorded_values_show_every_page_on_its_side_of_the_limit(crawl, tmp_path):
    config = CleanConfig(record_values=True)
    clean_crawl(list(crawl.items()), tmp_path / "out", tmp_path / "work", config, "sample", workers=0)
    found = measured(tmp_path / "out", "gopher_min_words")
    rows = read_ledger(tmp_path / "out").to_pylist()
    judged = [
        row
        for row in rows
        if row["outcome"] == "kept"
        or row["stage"] in ("quality", "dedup")
        or row["rule"] == "uncertain_language"
    ]
    assert sum(found.values()) == len(judged)
    chart = charts.values(found, [50.0], str, "min")
    line = chart["marks"][0]
    middles = {box["x"] + box["w"] / 2: box["kind"] for box in chart["boxes"]}
    assert {kind for x, kind in middles.items() if x > line} == {"kept"}
    assert {kind for x, kind in middles.items() if x < line} <= {"dropped"}


def test_a_corpus_without_recorded_values_has_none(cleaned):
    assert measured(cleaned, "gopher_min_words") is None


def test_values_too_few_or_all_alike_are_not_drawn():
    assert charts.values({1.0: 5, 2.0: 5}, [3.0], str) is None
    drawn = charts.values({0.001: 1, 0.1: 2, 10.0: 3, 1000.0: 4}, [], str)
    assert drawn["marks"] == [] and len(drawn["boxes"]) == 4
