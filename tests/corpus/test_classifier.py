"""A classifier learns what its examples have in common, and the best share of each language is kept."""

import hashlib
import json
import math
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest

from core.errors import MissingError
from corpus.classifier import BUCKETS, SCALE, Classifier, ClassifierError, Cuts, features
from corpus.clean import CleanConfig, clean_crawl
from corpus.ledger import check_conservation, read_ledger
from corpus.sample_web.build import build_sample
from corpus.sample_web.texts import manual_texts
from corpus.train_classifier import train

SEA = "the tide rose over the harbour and the old sailors mended nets beside their boats until evening"
LAW = "the court held that a contract without consideration binds neither party under the statute"


def text_about(words: str, random: Random) -> str:
    return " ".join(random.choices(words.split(), k=80)) + "."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The manual's sample, cleaned without a classifier, and its crawl's files."""
    folder = tmp_path_factory.mktemp("classifier")
    build_sample(folder / "crawl", pages=200, texts=manual_texts(), files=2)
    files = [(path.name, path) for path in sorted((folder / "crawl").glob("*.warc.gz"))]
    clean_crawl(files, folder / "plain", folder / "work", CleanConfig(), workers=0)
    return folder, files


@pytest.fixture(scope="module")
def model(corpus):
    """Trained on texts about the sea against the manual."""
    folder, _ = corpus
    random = Random(0)
    with (folder / "sea.jsonl").open("w") as lines:
        lines.writelines(json.dumps({"text": text_about(SEA, random)}) + "\n" for _ in range(60))
    report = train([str(folder / "sea.jsonl")], [folder / "plain"], folder / "model.safetensors")
    return folder / "model.safetensors", report


def test_the_model_separates_the_sea_from_the_manual_and_reports_how_well(model, corpus):
    path, report = model
    assert report["positives"] == {"en": 60}
    assert report["held_out"]["auc"] > 0.99 and report["held_out"]["positives"] == 6
    assert json.loads(path.with_suffix(".json").read_text()) == report
    classifier, random = Classifier.load(path), Random(1)
    assert classifier.score(text_about(SEA, random)) > 0.9
    assert classifier.score(text_about(LAW, random)) < classifier.score(text_about(SEA, random))


def test_the_same_examples_give_the_same_file(model, corpus, tmp_path):
    folder, _ = corpus
    train([str(folder / "sea.jsonl")], [folder / "plain"], tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == model[0].read_bytes()


def test_a_score_is_the_logistic_of_the_mean_weight(model):
    classifier, text = Classifier.load(model[0]), "The tide rose; the tide fell."
    logit = classifier.bias + SCALE * np.mean([classifier.weights[f] for f in features(text)], dtype=float)
    assert classifier.score(text) == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)


def test_features_are_words_and_pairs_without_digits_signs_or_placeholders():
    assert len(features("One two, THREE")) == 5 and features("").size == 0
    same = features("write to the editor")
    for text in ("Write to <email> the editor!", "write to 12 “the” editor…", "WRITE—to the (editor)"):
        np.testing.assert_array_equal(features(text), same)
    assert len(features("水温上升 the sea")) == 4 + 2 + 5
    assert max(features("ein paar Wörter, ещё слова και λέξεις")) < BUCKETS


def test_the_best_share_of_each_language_is_kept_with_all_ties():
    scores, languages = [0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 0.9, 0.9], ["en"] * 5 + ["de"] * 3
    cuts = Cuts.over(scores, languages, 0.4)
    assert cuts == Cuts.over(scores[::-1], languages[::-1], 0.4)
    kept = [s for s, name in zip(scores, languages, strict=True) if cuts.below(s, name) is None]
    assert kept == [0.4, 0.5, 0.9, 0.9, 0.9]
    assert cuts.below(None, "en") is None and cuts.below(0.0, "fr") is None


def test_a_crawl_keeps_the_configured_share_with_every_score_in_the_ledger(model, corpus, tmp_path):
    folder, files = corpus
    config = CleanConfig(quality_model=str(model[0]), quality_keep=0.25)
    stats = clean_crawl(files, tmp_path / "out", tmp_path / "work", config, workers=0)
    check_conservation(tmp_path / "out")
    rows, plain = read_ledger(tmp_path / "out").to_pylist(), read_ledger(folder / "plain").to_pylist()
    survivors = {row["record_id"] for row in plain if row["outcome"] == "kept"}
    kept = {row["record_id"] for row in rows if row["outcome"] == "kept"}
    gone = [row for row in rows if row["rule"] == "quality_classifier"]
    assert kept < survivors and len(kept) == math.ceil(0.25 * len(survivors)) == stats.kept
    assert survivors - kept == {row["record_id"] for row in gone}
    cut = stats.quality_cuts["en"]
    assert all(row["quality"] == row["value"] < row["threshold"] == cut for row in gone)
    assert all(row["quality"] >= cut for row in rows if row["record_id"] in kept)
    assert all(row["quality"] is None for row in plain)


def test_another_model_in_the_same_place_changes_the_settings_and_the_result(model, corpus, tmp_path):
    folder, files = corpus
    path = tmp_path / "model.safetensors"
    path.write_bytes(model[0].read_bytes())
    before = CleanConfig(quality_model=str(path)).hash
    assert before == CleanConfig(quality_model=str(model[0])).hash != CleanConfig().hash
    Classifier(np.zeros(BUCKETS, dtype=np.float32), 0.0, ("en",)).save(path)
    assert CleanConfig(quality_model=str(path)).hash != before
    config = CleanConfig(quality_model=str(path), quality_keep=0.25)
    clean_crawl(files, tmp_path / "out", tmp_path / "work", config, workers=0)
    documents = pq.read_table(tmp_path / "out" / "documents")
    assert documents.equals(pq.read_table(folder / "plain" / "documents"))  # all are ties at the cut


def test_bad_models_and_examples_give_clear_errors(tmp_path, corpus):
    folder, files = corpus
    (tmp_path / "bad.safetensors").write_bytes(b"not a model")
    for path, sentence in (("bad.safetensors", "cannot be read"), ("none.safetensors", "cannot be read")):
        config = CleanConfig(quality_model=str(tmp_path / path))
        with pytest.raises(ClassifierError, match=sentence):
            clean_crawl(files, tmp_path / "out", tmp_path / "work", config, workers=0)
    (tmp_path / "few.txt").write_text("One good text is not enough to learn from.")
    with pytest.raises(ClassifierError, match="Give more examples"):
        train([str(tmp_path / "few.txt")], [folder / "plain"], tmp_path / "m.safetensors")
    (tmp_path / "odd.jsonl").write_text('{"texte": "x"}\n')
    with pytest.raises(ClassifierError, match="line 1"):
        train([str(tmp_path / "odd.jsonl")], [folder / "plain"], tmp_path / "m.safetensors")
    with pytest.raises(ClassifierError, match="no examples"):
        train([str(tmp_path / "*.parquet")], [folder / "plain"], tmp_path / "m.safetensors")


def test_training_without_its_libraries_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'stemma\[classifier\]'"):
        train([], [], tmp_path / "m.safetensors")


def test_hashing_is_the_same_on_every_machine():
    digest = hashlib.sha256(features("The quick brown fox, ещё λέξεις 水").tobytes()).hexdigest()
    assert digest[:16] == "5b01ca874b1c8308"
