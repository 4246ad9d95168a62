"""Each heuristic against its definition, and against a plain count."""

import random
from collections import Counter

import pytest

from corpus.config import CleanConfig
from corpus.quality import DEFAULT_THRESHOLDS, RULES, Page, Verdict, judge
from corpus.words import Words

SENTENCES = [
    "The river turns to the north below the town and flows through meadows that have never been ploughed.",
    "Her grandfather built the first boat with his own hands, and it was used for forty years.",
    "Most of the letters were lost in the fire, but two of them survived with their seals unbroken.",
    "In spring the fishermen mend their nets on the quay while children watch from the wall.",
    "A narrow path leads from the church to the lighthouse, and few people take it after dark.",
    "Nobody could say when the bell had been cast or who had paid for it.",
]
GOOD = "\n".join(SENTENCES)
MEASURE = {rule.name: rule.measure for rule in RULES}


def verdict(text, language="en", **thresholds):
    found = judge(Words.of(text), language, thresholds)
    return found.rule if isinstance(found, Verdict) else None


def test_good_prose_passes_unchanged():
    kept = judge(Words.of(GOOD), "en", {})
    assert isinstance(kept, Words) and kept.text == GOOD


def spread(*lines):
    """Good prose of different words, long enough that one planted trouble decides."""
    return "\n".join([*SENTENCES, *lines])


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("gopher_dup_paragraphs", "\n\n".join(["A line of some length."] * 2 + ["Another one here."])),
        ("gopher_dup_lines", "\n".join(SENTENCES + ["Menu", "Menu", "Menu"] * 2)),
        ("gopher_dup_line_chars", "\n".join(SENTENCES + SENTENCES[:2])),
        ("gopher_top_2_gram", " ".join(["buy shoes"] * 30) + " now."),
        ("gopher_min_words", "\n".join(SENTENCES[:2])),
        ("gopher_min_word_length", " ".join(f"{a}{b}" for a in "abcdefghijklm" for b in "nopqrstuvwxy")),
        (
            "gopher_max_word_length",
            " ".join(f"{a}{b}unreasonablylong" for a in "abcdefgh" for b in "nopqrstu"),
        ),
        (
            "gopher_hashes",
            spread(
                " ".join(f"#{word}" for word in ["one", "two", "three", "four", "five", "six", "seven"] * 3)
            ),
        ),
        ("gopher_bullet_lines", "\n".join(f"- {sentence}" for sentence in SENTENCES)),
        (
            "gopher_ellipsis_lines",
            "\n".join(s[:-1] + "..." for s in SENTENCES[:3]) + "\n" + "\n".join(SENTENCES[3:]),
        ),
        ("gopher_letters", spread(" ".join(str(n * 37) for n in range(60)))),
        ("c4_lorem_ipsum", spread("Then Lorem Ipsum dolor sit amet was printed on it.")),
        ("c4_curly_bracket", spread("The function body starts with { and goes on.")),
        ("c4_min_sentences", " ".join(s[:-1].lower() for s in SENTENCES[:4])),
        ("fineweb_line_ends", "\n".join(s[:-1] for s in SENTENCES)),
        ("fineweb_dup_line_chars", "\n".join(SENTENCES * 1 + ["See the notes at the end."] * 2)),
    ],
)
def test_a_text_with_one_trouble_is_dropped_by_its_rule(rule, text):
    assert verdict(text) == rule
    assert verdict(text, **{rule: None}) != rule


def test_stop_words_are_asked_of_english_only():
    text = "\n".join(f"Zorg {a}lam {b}rin tovu {a}{b}esk pandor {b}{a}ilo." for a in "abcdef" for b in "ghij")
    assert verdict(text) == "gopher_stop_words"
    assert verdict(text, language="eo") is None


def test_lines_that_are_not_prose_go_and_the_title_stays():
    text = spread(
        "Click here", "Please enable JavaScript to read.", "Read our privacy policy for more.", "It is so.[1]"
    )
    kept = judge(Words.of("Mill\n" + text, title=True), "en", {})
    assert kept.lines == ["Mill", *SENTENCES, "It is so."]
    assert judge(Words.of("Mill\n" + text), "en", {}).lines[0] == SENTENCES[0]


def brute_top(words, n):
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    most = max(grams.values())
    first = next(gram for gram in grams if grams[gram] == most)
    return len(" ".join(first)) * most


def brute_dup(words, n):
    seen, at, characters = set(), 0, 0
    while at + n <= len(words):
        gram = tuple(words[at : at + n])
        if gram in seen:
            characters += sum(map(len, gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return characters


@pytest.mark.parametrize("seed", range(5))
def test_repetition_counts_equal_a_plain_count(seed):
    random.seed(seed)
    text = " ".join(random.choice(["ab", "c", "def", "gh,", "i"]) for _ in range(400))
    page = Page(Words.of(text), "en")
    for n in (2, 3, 4):
        assert MEASURE[f"gopher_top_{n}_gram"](page) == pytest.approx(
            brute_top(page.words.tokens, n) / len(text)
        )
    for n in range(5, 11):
        assert MEASURE[f"gopher_dup_{n}_grams"](page) == pytest.approx(
            brute_dup(page.words.tokens, n) / len(text)
        )


def test_thresholds_are_the_papers():
    """Gopher, table A1, and FineWeb, section 3.5 with datatrove's line duplicates."""
    table = {"gopher_dup_lines": 0.3, "gopher_dup_paragraphs": 0.3, "gopher_dup_line_chars": 0.2}
    table |= {"gopher_top_2_gram": 0.2, "gopher_top_3_gram": 0.18, "gopher_top_4_gram": 0.16}
    table |= {f"gopher_dup_{n}_grams": round(0.2 - n / 100, 2) for n in range(5, 11)}
    table |= {"fineweb_line_ends": 0.12, "fineweb_short_lines": 0.67, "fineweb_dup_line_chars": 0.01}
    assert table.items() <= DEFAULT_THRESHOLDS.items()
    assert all(rule.source for rule in RULES) and len({rule.name for rule in RULES}) == len(RULES)


def test_a_setting_that_does_not_exist_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="no rule named gopher_typo"):
        CleanConfig(thresholds={"gopher_typo": 1})
    with pytest.raises(ValueError, match="no setting named langauges"):
        CleanConfig.from_dict({"langauges": ["en"]})
    with pytest.raises(ValueError, match="is a list"):
        CleanConfig(languages="en")
    assert CleanConfig().hash != CleanConfig(thresholds={"gopher_min_words": 10}).hash
