"""Words, and the hashes that rules and shingles are computed from."""

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


def test_a_compacted_text_still_has_its_words_and_shingles_and_little_else():
    words, light = (Words.of("The cat sat on the mat, and slept.\nThen it woke.") for _ in range(2))
    light.compact()
    assert light.text == words.text and light.n_words == words.n_words == 11
    assert light.shingles(5).tolist() == words.shingles(5).tolist()
    assert not hasattr(light, "known")


def test_a_new_vocabulary_changes_nothing(monkeypatch):
    text = " ".join(random.Random(2).choices([f"word{number}" for number in range(50)], k=300))
    before = Words.of(text)
    monkeypatch.setattr("corpus.words.MOST_CHUNKS", 10)
    Words.of("other words come first")
    after = Words.of(text)
    assert after.known is not before.known
    assert after.tokens == before.tokens and after.shingles(5).tolist() == before.shingles(5).tolist()
    assert after.ngram_hashes(3).tolist() == before.ngram_hashes(3).tolist()
