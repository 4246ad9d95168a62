"""Language identification with the installed model."""

import pytest

from corpus.language import first_look, identify, model_path


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
def test_plain_sentences_are_identified(text, language):
    found, score = identify(text)
    assert found == language and score > 0.65


def test_a_text_without_letters_has_no_language():
    assert identify("12 + 34\n= 46") == ("und", 0.0)


def test_the_model_is_the_one_that_the_installed_package_ships():
    assert model_path().name == "lid.176.ftz"


def test_daniel_pages_are_labelled_as_their_annotators_did(shared_data):
    import gzip
    import json

    with gzip.open(shared_data / "crawl" / "gold.jsonl.gz", "rt") as file:
        pages = [json.loads(line) for line in file]
    labelled = [page for page in pages if page["language"] and len(page["text"]) > 200]
    right = sum(identify(page["text"])[0] == page["language"] for page in labelled)
    assert right / len(labelled) > 0.995


def test_the_first_look_at_raw_pages_drops_hardly_any_that_full_extraction_keeps(shared_data):
    """On half of the real pages; the four wanted ones with paragraphs in another language are of mixed language."""
    from corpus.extraction.extract import extract_page
    from corpus.warc import read_records

    wanted, dropped, wrong = ("en", "de", "zh", "pl", "el", "ru"), 0, 0
    for path in sorted((shared_data / "crawl").glob("*.warc.gz"))[:1]:
        for record in read_records(path, path.name):
            seen, score = first_look(record.payload, record.http_charset)
            if score < 0.9:
                continue
            found, certain = identify(extract_page(record.payload, record.http_charset).text)
            dropped += len([code for code in wanted if code != seen])
            wrong += certain >= 0.65 and found != seen and found in wanted
    assert dropped > 1000 and wrong <= dropped / 1000


def test_the_first_look_makes_no_guess_on_pages_with_little_text():
    assert first_look(b"<p>Ein Satz allein, auch wenn er recht lang geworden ist, sagt zu wenig.</p>") == (
        "und",
        0.0,
    )
    latin1 = "<p>Über den Flüssen hängen die Brücken, und in den Gärten blühen späte Äpfel an Bäumen.</p>" * 9
    assert first_look(latin1.encode())[0] == "de"
    assert first_look(latin1.encode("latin-1")) == ("und", 0.0)
    assert first_look(latin1.encode("latin-1"), "iso-8859-1")[0] == "de"
    assert first_look(b'<meta charset="latin1">' + latin1.encode("latin-1"))[0] == "de"
    assert first_look(latin1.replace("<p>", "<td class='x'>").replace("</p>", "</td>").encode())[0] == "de"
