"""Learning merges: the library's trainer is the reference; ours must learn the same merges in the same order."""

import random
from collections import Counter

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from model.vocabulary import bpe
from model.vocabulary.byte_level import split_pattern
from model.vocabulary.config import TokenizerConfig
from model.vocabulary.special import SPECIAL_TOKENS
from model.vocabulary.train import train_tokenizer


def library_tokenizer(texts: list[str], config: TokenizerConfig) -> str:
    """What Hugging Face's BpeTrainer makes of the texts, as JSON."""
    learner = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(split_pattern(config.max_digits)), behavior="isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return learner.to_str(pretty=True)


def texts_of(kind: str) -> list[str]:
    from pydoc_data.topics import topics

    dice = random.Random(0)
    scripts = [*range(32, 127), *range(0x410, 0x450), *range(0x4E00, 0x4E20), 0x1F600, 0xDF]
    return {
        "prose": list(topics.values()),
        "runs": [f"{'a' * n} {'-' * n}{' ' * n}" for n in range(1, 70)] * 3,
        "few letters": ["".join(dice.choices("aaab", k=dice.randrange(60))) for _ in range(1000)],
        "scripts": ["".join(map(chr, dice.choices(scripts, k=200))) for _ in range(100)],
    }[kind]


@pytest.mark.parametrize("kind", ["prose", "runs", "few letters", "scripts"])
@pytest.mark.parametrize("settings", [(300, 1, 1), (1500, 2, 3)])
def test_the_tokenizer_is_the_librarys_to_the_byte(kind, settings, tmp_path):
    config = TokenizerConfig(
        **dict(zip(("vocab_size", "min_frequency", "max_digits"), settings, strict=True))
    )
    train_tokenizer(texts_of(kind), tmp_path / "t", config)
    assert (tmp_path / "t" / "tokenizer.json").read_text() == library_tokenizer(texts_of(kind), config)


def test_blocks_batches_and_sieve_do_not_change_the_merges(monkeypatch):
    texts = texts_of("prose")[:20]
    alphabet = list(range(256))
    whole = bpe.learn_merges(bpe.count_pieces(texts, split_pattern(1)), alphabet, 500)
    monkeypatch.setattr(bpe, "BATCH", 20_000)  # several batches, so that workers are started
    monkeypatch.setattr(bpe, "BLOCK", 1000)
    monkeypatch.setattr(bpe, "SIEVE_BITS", 3)  # 8 counters: nearly every pair shares one
    parts = bpe.learn_merges(bpe.count_pieces(reversed(texts), split_pattern(1)), alphabet, 500)
    assert whole == parts
    assert len(whole) == 500


def test_pieces_are_counted_whatever_their_distribution_over_texts():
    texts = ["one two two", "", "two one 12"]
    assert bpe.count_pieces(texts, split_pattern(1)) == Counter(
        {"one": 1, " two": 2, "two": 1, " one": 1, " ": 1, "1": 1, "2": 1}
    )
    assert not bpe.count_pieces([""], split_pattern(1))
