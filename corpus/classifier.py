"""A quality classifier: a linear model over hashed words and word pairs, trained on examples of good text.

After DCLM (Li et al. 2024, arXiv 2406.11794, section 4.4): a fastText classifier separated positives from random
crawl, and the best tenth was kept. Here it is the same linear bag of 1- and 2-grams without the embedding in between,
which adds nothing for two classes. Words are runs of letters in lower case (single characters in Chinese and
Japanese), so that neither digits nor the placeholders of personal data show which class a text came from.

A score depends on the text and the model's file alone. The cuts that keep a share of each language are computed over
all documents of a crawl once duplicates are removed. Training: corpus/train_classifier.py.
"""

import json
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from core.errors import DataError
from core.files import write_atomically
from corpus.words import CJK, HAS_CJK

BUCKETS = 1 << 18  # a power of two; 1 MiB of weights
MAX_CHARACTERS = 10_000  # the rest of a longer text is not read: it costs time and hardly changes the mean
SCALE = (
    32.0  # features are shares of a text's n-grams times this, so that usual regularisation strengths apply
)
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, high entropy: pairs of words hash apart from their parts
PLACEHOLDER = re.compile(r"<(?:email|ip|phone|iban|card)>")
WORD = re.compile(rf"[{CJK}]|[^\W\d_{CJK}]+")
# The same for texts without CJK, four times as fast: bytes that are not letters become spaces, and so do the dashes,
# quotes and dots of U+0080..00BF and U+2000..207F.
LETTERS = bytes(c if c > 127 or chr(c).isalpha() else 32 for c in range(256))
WIDE_SIGN = re.compile(rb"\xc2[\x80-\xbf]|\xe2[\x80\x81][\x80-\xbf]")


class ClassifierError(DataError):
    """A model or its examples cannot be used: why, and what to do."""


def features(text: str) -> np.ndarray:
    """The buckets of a text's words and word pairs, with repeats: (n,) int64 below BUCKETS."""
    if "<" in text:
        text = PLACEHOLDER.sub(" ", text)
    words = _words(text[:MAX_CHARACTERS].lower())
    if not words:
        return np.empty(0, dtype=np.int64)
    hashes = np.fromiter(map(zlib.crc32, words), dtype=np.uint64, count=len(words))
    pairs = (hashes[:-1] * MIX) ^ (hashes[1:] + (hashes[:-1] << np.uint64(7)))
    both = np.concatenate((hashes, pairs)) * MIX
    return (both >> np.uint64(64 - BUCKETS.bit_length() + 1)).astype(np.int64)


def _words(text: str) -> list[bytes]:
    if text.isascii():
        return text.encode().translate(LETTERS).split()
    if HAS_CJK.search(text):
        return [word.encode() for word in WORD.findall(text)]
    return WIDE_SIGN.sub(b" ", text.encode("utf-8", "replace")).translate(LETTERS).split()


@dataclass(frozen=True)
class Classifier:
    """`weights`: (BUCKETS,) float32; `languages`: those it was trained on, the only ones that it scores."""

    weights: np.ndarray
    bias: float
    languages: tuple[str, ...]

    def score(self, text: str) -> float:
        """How similar a text is to the positives, 0..1, to six decimals."""
        found = features(text)
        mean = float(self.weights[found].sum(dtype=np.float64)) / len(found) if len(found) else 0.0
        return round(1 / (1 + math.exp(-max(-60.0, min(60.0, self.bias + SCALE * mean)))), 6)

    def save(self, path: Path) -> None:
        """Write a safetensors file whose bytes depend on nothing but the model. Raises OSError."""
        from safetensors.numpy import save

        # One entry only: safetensors writes several in an order that differs from run to run.
        about = {"stemma_quality_classifier": json.dumps({"version": 1, "languages": self.languages})}
        tensors = {"weights": self.weights, "bias": np.array([self.bias], dtype=np.float64)}
        write_atomically(path, save(tensors, metadata=about))

    @classmethod
    def load(cls, path: Path | str) -> "Classifier":
        """Read a model. Raises ClassifierError where the file is missing or is not such a model."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "np") as file:
                languages = json.loads((file.metadata() or {})["stemma_quality_classifier"])["languages"]
                weights, bias = file.get_tensor("weights"), float(file.get_tensor("bias")[0])
        except (OSError, SafetensorError, KeyError) as error:
            raise ClassifierError(
                f"{path} cannot be read as a quality classifier ({error}). "
                "Make one with: stemma corpus train-classifier"
            ) from error
        if weights.shape != (BUCKETS,):
            raise ClassifierError(
                f"{path} holds {weights.shape} weights instead of {BUCKETS}. Train it again."
            )
        return cls(weights, bias, tuple(languages))


@lru_cache(maxsize=2)
def load_classifier(path: str) -> Classifier:
    """The model of a path, read once a process. Raises ClassifierError."""
    return Classifier.load(path)


def score_document(text: str, language: str, path: str) -> float | None:
    """A document's score by the model at `path`; None without a model or in a language that it was not trained on."""
    if not path:
        return None
    model = load_classifier(path)
    return model.score(text) if language in model.languages else None


@dataclass(frozen=True)
class Cuts:
    """For each language the score below which documents are dropped."""

    by_language: dict[str, float]

    def below(self, score: float | None, language: str) -> float | None:
        """The cut that a document's score is below, or None where the document is kept."""
        cut = self.by_language.get(language)
        return cut if score is not None and cut is not None and score < cut else None

    @classmethod
    def over(cls, scores: Sequence[float], languages: Sequence[str], keep: float) -> "Cuts":
        """The cuts that keep the best share `keep` of each language's scores, and all ties at the cut.

        The result does not depend on the order of the scores.
        """
        values, names = np.asarray(scores, dtype=np.float64), np.asarray(languages, dtype=object)
        cuts = {}
        for language in sorted(set(languages)):
            ours = np.sort(values[names == language])[::-1]
            cuts[language] = float(ours[max(1, math.ceil(keep * len(ours) - 1e-9)) - 1])
        return cls(cuts)
