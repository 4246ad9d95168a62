"""Words, and the hashes that rules and shingles are made of."""

import random

from corpus.words import Words, tokenize


def test_tokens_are_words_and_signs():
    assert tokenize("Ann's U.S. flat costs 1,000.50 at 10:30, see a.example/x.") == (
        [
            "Ann",
            "'s",
            "U.S.",
            "flat",
            "costs",
            "1,000.50",
            "at",
            "10:30",
            ",",
            "see",
            "a.example",
            "/",
            "x",
            ".",
        ]
    )


def test_chinese_characters_are_words_and_latin_runs_stay_whole():
    assert tokenize("中文 test3.5版") == ["中", "文", "test3.5", "版"]


def test_ngram_hashes_agree_where_and_only_where_ngrams_do():
    random.seed(3)
    words = Words.of(" ".join(random.choice("abcdef") for _ in range(2000)))
    for n in (1, 2, 5):
        hashes = words.ngram_hashes(n).tolist()
        ngrams = [tuple(words.tokens[i : i + n]) for i in range(len(words.tokens) - n + 1)]
        assert len(hashes) == len(ngrams)
        assert len(set(zip(hashes, ngrams, strict=True))) == len(set(hashes)) == len(set(ngrams))


def test_shingles_ignore_case_and_signs():
    one = Words.of("The cat sat on the mat, and slept.").shingles(5)
    other = Words.of("the CAT -- sat on the mat and slept!").shingles(5)
    assert one.tolist() == other.tolist() and len(one) == 4


def test_a_short_text_is_one_shingle_and_an_empty_one_none():
    assert len(Words.of("only three words").shingles(5)) == 1
    assert len(Words.of("").shingles(5)) == 0
    assert len(Words.of("!?").shingles(5)) == 0
