"""Each heuristic against its definition, and against a naive count."""

import random
from collections import Counter

import pytest

from corpus.config import CleanConfig
from corpus.rules.measures import Page
from corpus.rules.quality import DEFAULT_THRESHOLDS, RULES, Verdict, judge, limits_for, limits_of
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
    found = judge(Words.of(text), limits_for(language, thresholds=tuple(thresholds.items())))
    return found.rule if isinstance(found, Verdict) else None


def test_good_prose_passes_unchanged():
    kept = judge(Words.of(GOOD), limits_for("en"))
    assert isinstance(kept, Words) and kept.text == GOOD


def spread(*lines):
    """Good prose of different words, long enough that one planted defect decides."""
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
def test_a_text_with_one_defect_is_dropped_by_its_rule(rule, text):
    assert verdict(text) == rule
    assert verdict(text, **{rule: None}) != rule


def test_stop_words_are_required_in_languages_that_have_a_list():
    text = "\n".join(f"Zorg {a}lam {b}rin tovu {a}{b}esk pandor {b}{a}ilo." for a in "abcdef" for b in "ghij")
    assert verdict(text) == "gopher_stop_words"
    assert verdict(text, language="de") == "gopher_stop_words"
    assert verdict(text, language="eo") is None


def test_words_and_thresholds_follow_the_language():
    german = limits_for("de")
    assert {"der", "und", "von"} <= german.stop_words
    assert german.thresholds["gopher_max_word_length"] == 15  # FineWeb-2, deu_Latn
    assert limits_for("zh").thresholds["gopher_min_word_length"] is None  # a character is a word
    assert limits_for("pl").thresholds["fineweb_dup_line_chars"] == 0.1  # FineWeb-2, all but English
    for code in ("en", "de", "fr", "es", "pl", "ru", "el", "zh"):
        assert len(limits_for(code).stop_words) >= 8, code
    assert any(word.endswith("ς") for word in limits_for("el").stop_words)


def test_a_threshold_is_set_for_all_languages_or_for_one():
    config = CleanConfig(
        thresholds={"gopher_min_words": 40}, language_thresholds={"de": {"gopher_min_words": 20}}
    )
    least = {code: limits_of(config, code).thresholds["gopher_min_words"] for code in ("en", "de", "fr")}
    assert least == {"en": 40, "de": 20, "fr": 40}


def test_where_paper_and_code_differ_either_can_be_chosen():
    """C4, last version: 3 sentences, 5 words a line, terminal punctuation; FineWeb's text: 0.1, and 29 or fewer."""
    papers = limits_of(CleanConfig(rules="papers"), "en").thresholds
    expected = {"c4_min_sentences": 3, "c4_line_min_words": 5, "c4_line_terminal_punctuation": 1}
    expected |= {"fineweb_dup_line_chars": 0.1, "fineweb_short_line_chars": 29, "fineweb_line_breaks": None}
    assert expected.items() <= papers.items()
    code = limits_of(CleanConfig(), "en").thresholds
    assert all(code[name] != value for name, value in expected.items())
    with pytest.raises(ValueError, match="it can be fineweb or papers"):
        CleanConfig(rules="c4")


def test_c4_requires_terminal_punctuation_where_that_is_on():
    text = spread("A line of four words", "It goes on and on...", 'He said that it was "so"')
    assert judge(Words.of(text), limits_for("en")).lines == text.split("\n")
    asked = judge(Words.of(text), limits_for("en", thresholds=(("c4_line_terminal_punctuation", 1),)))
    assert asked.lines == [*SENTENCES, 'He said that it was "so"']


def test_bad_words_come_from_the_settings():
    text = spread("The word zounds was thought to be a very bad one.")
    assert isinstance(judge(Words.of(text), limits_for("en")), Words)
    assert judge(Words.of(text), limits_for("en", bad_words=("zounds",))).rule == "c4_bad_words"
    assert isinstance(judge(Words.of(text), limits_for("en", bad_words=("zound",))), Words)


def test_gopher_counts_repeated_runs_with_or_without_their_first_occurrence():
    once = "a certain phrase of seven plain words"
    text = f"{once} here {once} there"
    page, both = (
        Page(Words.of(text), DEFAULT_THRESHOLDS | {"gopher_first_of_repeated": first}) for first in (0, 1)
    )
    letters = len(once.replace(" ", ""))
    assert MEASURE["gopher_dup_7_grams"](page) == letters / len(text)
    assert MEASURE["gopher_dup_7_grams"](both) == 2 * letters / len(text)


def test_lines_that_are_not_prose_are_dropped_and_the_title_is_kept():
    text = spread(
        "Click here", "Please enable JavaScript to read.", "Read our privacy policy for more.", "It is so.[1]"
    )
    kept = judge(Words.of("Mill\n" + text, title=True), limits_for("en"))
    assert kept.lines == ["Mill", *SENTENCES, "It is so."]
    assert judge(Words.of("Mill\n" + text), limits_for("en")).lines[0] == SENTENCES[0]


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
def test_repetition_counts_equal_a_naive_count(seed):
    random.seed(seed)
    text = " ".join(random.choice(["ab", "c", "def", "gh,", "i"]) for _ in range(400))
    page = Page(Words.of(text), DEFAULT_THRESHOLDS)
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


def test_the_docs_page_shows_the_rules_of_the_code(root):
    import importlib.util

    spec = importlib.util.spec_from_file_location("rule_tables", root / "tools" / "rule_tables.py")
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    page = (root / "docs" / "rules.md").read_text()
    assert rules.with_tables(page) == page, "python -m tools.rule_tables --write"
    assert all(f"`{name}`" in page for name in DEFAULT_THRESHOLDS)


def test_an_unknown_setting_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="no rule named gopher_typo"):
        CleanConfig(thresholds={"gopher_typo": 1})
    with pytest.raises(ValueError, match="no setting named langauges"):
        CleanConfig.from_dict({"langauges": ["en"]})
    with pytest.raises(ValueError, match="is a list"):
        CleanConfig(languages="en")
    assert CleanConfig().hash != CleanConfig(thresholds={"gopher_min_words": 10}).hash
