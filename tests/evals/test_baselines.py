"""The baselines are what they claim: an entropy computed by hand, a compressor that gains from its dictionary."""

import math

import numpy as np
import pytest

from evals.baselines import unigram_bits_per_byte, zstd_bits_per_byte


def test_unigram_bits_are_the_entropy_of_the_training_frequencies():
    counts = np.array([2, 1, 1, 0])  # 3/8, 2/8, 2/8, 1/8 after smoothing
    bits = unigram_bits_per_byte(counts, np.array([0, 1, 3]), heldout_bytes=6)
    assert bits == pytest.approx((math.log2(8 / 3) + 2 + 3) / 6)


def test_zstd_with_the_text_as_dictionary_needs_hardly_any_bits():
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, 6))) for _ in range(400)]
    seen = [" ".join(rng.choice(words, 300)) for _ in range(20)]
    new = [" ".join(rng.choice(words, 300))]
    assert zstd_bits_per_byte(seen, [seen[7]]) < 0.2
    assert zstd_bits_per_byte(seen, new) < zstd_bits_per_byte([], new)


def test_an_empty_held_out_text_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        zstd_bits_per_byte(["a"], [])
    with pytest.raises(ValueError, match="empty"):
        unigram_bits_per_byte(np.ones(3), np.array([], dtype=int), 0)
