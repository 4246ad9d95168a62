"""Baselines for bits per byte: what a model must beat before it may be called a language model.

Unigram tokens: the model's own tokenizer with the training text's token frequencies and nothing else.
zstd: the strongest setting of a good general compressor that is given the training text as its dictionary, so that it
has seen the corpus too (compression is prediction: Delétang et al., arXiv 2309.10668).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def unigram_bits_per_byte(
    train_counts: npt.NDArray[Any],
    heldout_ids: npt.NDArray[np.int64],
    heldout_bytes: int,
    smoothing: float = 1.0,
) -> float:
    """Bits per UTF-8 byte of the held-out tokens under the training text's token frequencies.

    train_counts: (V,) occurrences of each token in the training text; `smoothing` is added to each (Laplace).
    """
    if heldout_bytes <= 0:
        raise ValueError("The held-out text is empty: it has no bits per byte.")
    probabilities = (train_counts + smoothing) / (train_counts.sum() + smoothing * len(train_counts))
    return float(-np.log2(probabilities[heldout_ids]).sum() / heldout_bytes)


def zstd_bits_per_byte(
    train_texts: Sequence[str], heldout_texts: Sequence[str], level: int = 19, max_dictionary: int = 64 << 20
) -> float:
    """Bits per byte of the held-out text in one zstd stream with the training text as raw dictionary.

    One stream for all documents favours zstd (it also learns from earlier held-out documents). Of the training text,
    the last `max_dictionary` bytes are used, more than the demo's corpus has.
    """
    import zstandard

    heldout = "\n".join(heldout_texts).encode()
    if not heldout:
        raise ValueError("The held-out text is empty: it has no bits per byte.")
    history = "\n".join(train_texts).encode()[-max_dictionary:]
    window_log = min(27, max(18, (len(history) + len(heldout)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=window_log, enable_ldm=True)
    dictionary = None
    if history:
        dictionary = zstandard.ZstdCompressionDict(history, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary)
    return 8 * len(compressor.compress(heldout)) / len(heldout)
