"""Pages are decoded as a browser decodes them: the same order of sources, labels as the standard defines them."""

import pytest

from corpus.extraction.charset import codec_of, decode, meta_label

RUSSIAN = "Привет, как дела, друзья мои? Сегодня хорошая погода. " * 5
WEST = "“Café” – déjà vu… Über €uropa "
GREEK = "Η πρώτη ιδέα ήταν καλή και όμορφη. " * 5
POLISH = "Zażółć gęślą jaźń, dziś jest ładna pogoda. " * 5
SIMPLE, TRADITIONAL = "今天天气很好，我们去公园散步吧。" * 5, "今天天氣很好，我們去公園散步吧。" * 5
JAPANESE = "今日は天気がいいので①番の公園へ行きましょう。" * 5
PAGES = {  # label: (the codec that a browser uses, a text)
    "utf-8": ("utf-8", RUSSIAN),
    "UTF8 ": ("utf-8", RUSSIAN),
    "iso-8859-1": ("cp1252", WEST),
    "latin1": ("cp1252", WEST),
    "us-ascii": ("cp1252", WEST),
    "windows-1252": ("cp1252", WEST),
    "iso-8859-15": ("iso8859-15", "Café à 5 €, Œuvre déjà vue. "),
    "windows-1250": ("cp1250", POLISH),
    "iso-8859-2": ("iso8859-2", POLISH),
    "windows-1251": ("cp1251", RUSSIAN),
    "cp1251": ("cp1251", RUSSIAN),
    "koi8-r": ("koi8-r", RUSSIAN),
    "iso-8859-5": ("iso8859-5", RUSSIAN),
    "ibm866": ("cp866", RUSSIAN),
    "x-mac-cyrillic": ("mac-cyrillic", RUSSIAN),
    "windows-1253": ("cp1253", GREEK),
    "iso-8859-7": ("iso8859-7", GREEK),
    "iso-8859-9": ("cp1254", "Bugün hava çok güzel, şimdi “parka” gidiyoruz. "),
    "iso-8859-11": ("cp874", "วันนี้อากาศดีมาก เราไปสวน “สาธารณะ” กัน "),
    "windows-1255": ("cp1255", "היום מזג האוויר יפה מאוד "),
    "windows-1256": ("cp1256", "الطقس جميل اليوم ونحن نذهب الى الحديقة "),
    "gb2312": ("gb18030", SIMPLE + "镕 €"),  # characters that GB 2312 itself lacks
    "gbk": ("gb18030", SIMPLE + TRADITIONAL + "𠀀"),
    "big5": ("big5hkscs", TRADITIONAL + "嘅"),
    "shift_jis": ("cp932", JAPANESE),
    "x-sjis": ("cp932", JAPANESE),
    "euc-jp": ("euc_jp", "今日は天気がいいので公園へ行きましょう。"),
    "iso-2022-jp": ("iso2022_jp", "今日は天気がいいので公園へ行きましょう。"),
    "ks_c_5601-1987": ("cp949", "오늘은 날씨가 좋아서 공원에 갑니다. 똠방각하 "),
    "euc-kr": ("cp949", "오늘은 날씨가 좋아서 공원에 갑니다. 똠방각하 "),
}


@pytest.mark.parametrize("label", PAGES)
def test_a_label_selects_the_codec_that_a_browser_uses(label):
    codec, text = PAGES[label]
    body = f"<p>{text}</p>".encode(codec)
    assert decode(body, label) == f"<p>{text}</p>"
    assert decode(f"<meta charset='{label}'>".encode() + body).endswith(f"<p>{text}</p>")
    typed = f'<META content="text/html; charset={label.strip()}" http-equiv=Content-Type>'
    assert decode(typed.encode() + body).endswith(f"<p>{text}</p>")


@pytest.mark.parametrize("label", ["windows-1251", "koi8-r", "windows-1253", "gbk", "big5", "shift_jis"])
def test_an_undeclared_encoding_is_guessed_by_content(label):
    codec, text = PAGES[label]
    page = f"<html><p>{text.rstrip('𠀀嘅')}</p>"
    assert decode(page.encode(codec)) == page


SAID = "<p>Zürich – café"
SOURCES = {  # where the encoding is declared: (bytes, HTTP charset)
    "mark before header": (f"\ufeff{SAID}".encode("utf-16-le"), "utf-8"),
    "mark alone": (f"\ufeff{SAID}".encode("utf-16-be"), None),
    "mark before both": (f"\ufeff<meta charset=latin1>{SAID}".encode(), "latin1"),
    "header before meta": (f"<meta charset=utf-8>{SAID}".encode("cp1252"), "windows-1252"),
    "header unknown": (SAID.encode(), "no-such-charset"),
    "meta utf-16": (f"<meta charset=utf-16>{SAID}".encode(), None),
    "meta x-user-defined": (f"<meta charset=x-user-defined>{SAID}".encode("cp1252"), None),
    "meta in a comment": (
        f"<!-- <meta charset=koi8-r> --><meta charset=latin1>{SAID}".encode("cp1252"),
        None,
    ),
    "meta of another kind": (
        f"<meta name=d content='charset=koi8-r'><meta charset=latin1>{SAID}".encode("cp1252"),
        None,
    ),
    "late meta": (b"<title>" + b" " * 3000 + f"<meta charset=cp1252>{SAID}".encode("cp1252"), None),
    "XML declaration": (f"<?xml version='1.0' encoding='iso-8859-1'?>{SAID}".encode("cp1252"), None),
    "nothing, UTF-8": (SAID.encode(), None),
    "nothing, Western": (SAID.encode("cp1252"), None),
}


@pytest.mark.parametrize("case", SOURCES)
def test_the_sources_are_tried_in_a_browsers_order(case):
    assert SAID in decode(*SOURCES[case])


def test_a_declaration_that_the_bytes_contradict_is_ignored():
    page = "<meta charset=utf-8><p>" + RUSSIAN
    assert "Привет" in decode(page.encode("cp1251"), "utf-8")
    assert "天气" in decode(f"<meta charset=gbk><p>{SIMPLE}".encode())


def test_one_bad_byte_costs_one_character():
    assert decode(b"<p>" + "é".encode() * 500 + b"\xff", "utf-8").count("\ufffd") == 1


def test_what_browsers_refuse_to_read_has_no_codec():
    assert codec_of("hz-gb-2312") is codec_of("nonsense") is codec_of(None) is None
    assert meta_label(b"<body>charset=utf-8") is None


def test_any_bytes_give_a_text():
    for data in (
        b"",
        b"\x00" * 1000,
        bytes(range(256)) * 20,
        b"<meta charset=",
        b"<!--" * 5000,
        b"\xff\xfe\x00",
    ):
        for charset in (None, "utf-8", "utf-16", "gbk", "iso-2022-jp", "\x00"):
            assert isinstance(decode(data, charset), str)
