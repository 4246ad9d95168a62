"""Language identification with the installed model."""

import pytest

from corpus.language import identify, model_path


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The house stands on a hill above the river, and nobody has lived there for years.", "en"),
        ("La maison se trouve sur une colline au-dessus de la rivière depuis des années.", "fr"),
        ("La casa está en una colina sobre el río y nadie ha vivido allí durante años.", "es"),
        ("Дом стоит на холме над рекой, и никто не живёт там уже много лет.", "ru"),
        ("房子坐落在河边的山上，多年来没有人住在那里。", "zh"),
    ],
)
def test_plain_sentences_are_known(text, language):
    found, score = identify(text)
    assert found == language and score > 0.65


def test_a_text_without_letters_has_no_language():
    assert identify("12 + 34\n= 46") == ("und", 0.0)


def test_the_model_is_the_one_that_the_installed_package_ships():
    assert model_path().name == "lid.176.ftz"


def test_daniel_pages_are_labelled_as_their_editors_did(shared_data):
    import gzip
    import json

    with gzip.open(shared_data / "crawl" / "gold.jsonl.gz", "rt") as file:
        pages = [json.loads(line) for line in file]
    labelled = [page for page in pages if page["language"] and len(page["text"]) > 200]
    right = sum(identify(page["text"])[0] == page["language"] for page in labelled)
    assert right / len(labelled) > 0.995
