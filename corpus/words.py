"""One tokenisation of a document that serves every quality rule and the shingles of deduplication.

Words are runs of letters, digits and marks, with inner dots; every other visible sign is a token of its own, as in
the tokenisers of published pipelines; Chinese and Japanese characters are one word each. Tokens are held once per
distinct word, so rules work on small integer arrays instead of strings.
"""

import re
from functools import cached_property
from itertools import chain

import numpy as np
import xxhash

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
HAS_CJK = re.compile(f"[{CJK}]")
# As spaCy has them: addresses, "U.S.", "J.", "example.com", "1,000.50", "10:30", "1/2/2026" and "GLP-1" are one token,
# "Ann's", "don't" and "1990-1995" are more. Decisions agree with datatrove's on 99 % of real English pages.
_TOKEN = (
    r"https?://\S+|(?<!\w)(?:[A-Z]\.)+"
    r"|W+(?:\.W+|(?<=\d)[,:/]\d+|(?<=[^\W\d_])-\d\w*)*|['’]W+"
    r"|\.{2,}|-{2,}|[^\w\s]"
)
TOKEN = re.compile(_TOKEN.replace("W+", r"\w+"))
TOKEN_CJK = re.compile(f"[{CJK}]|" + _TOKEN.replace("W+", rf"[^\W{CJK}]+"))
PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, high entropy: the multiplier of the rolling n-gram hash


def tokenize(line: str) -> list[str]:
    """Words and signs of a text, in order."""
    return (TOKEN if line.isascii() or not HAS_CJK.search(line) else TOKEN_CJK).findall(line)


class Words:
    """A text, its lines and their tokens; derived arrays are made when first asked for.

    `title` says that the first line is the page's title.
    """

    def __init__(self, lines: list[str], title: bool = False, tokens: list[list[str]] | None = None):
        self.lines = lines
        self.title = title
        self.tokens_by_line = [tokenize(line) for line in lines] if tokens is None else tokens

    @classmethod
    def of(cls, text: str, title: bool = False) -> "Words":
        """Tokenise a text."""
        return cls(text.split("\n"), title)

    @cached_property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)

    @cached_property
    def tokens(self) -> list[str]:
        """All words and signs, in order."""
        return list(chain.from_iterable(self.tokens_by_line))

    @cached_property
    def _vocabulary(self) -> tuple[list[str], np.ndarray]:
        """(distinct tokens, index of each token into them: (N,) int64)"""
        index: dict[str, int] = {}
        ids = [index.setdefault(token, len(index)) for token in self.tokens]
        return list(index), np.array(ids, dtype=np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Characters of each token: (N,) int64."""
        distinct, ids = self._vocabulary
        return np.array([len(w) for w in distinct], dtype=np.int64)[ids] if distinct else ids

    @cached_property
    def is_word(self) -> np.ndarray:
        """Whether each token is a word and not a sign: (N,) bool."""
        distinct, ids = self._vocabulary
        return np.array([any(map(str.isalnum, w)) for w in distinct], dtype=bool)[ids]

    @cached_property
    def has_letter(self) -> np.ndarray:
        """Whether each token has at least one letter: (N,) bool."""
        distinct, ids = self._vocabulary
        return np.array([w.isalpha() or any(c.isalpha() for c in w) for w in distinct], dtype=bool)[ids]

    @cached_property
    def n_words(self) -> int:
        """Number of words, signs not counted."""
        return int(self.is_word.sum()) if self.tokens else 0

    @cached_property
    def distinct(self) -> set[str]:
        """The set of tokens as written."""
        return set(self._vocabulary[0])

    def ngram_hashes(self, n: int) -> np.ndarray:
        """A 64-bit hash of each run of n tokens as written, signs included: (N - n + 1,) uint64."""
        return rolling_hash(self._exact, n)

    def shingles(self, n: int) -> np.ndarray:
        """Sorted distinct 64-bit hashes of runs of n lower-case words, signs left out: (S,) uint64.

        A text of fewer than n words has one shingle: all of it.
        """
        folded = self._folded
        return np.unique(rolling_hash(folded, min(n, len(folded)))) if len(folded) else folded

    @cached_property
    def _exact(self) -> np.ndarray:
        distinct, ids = self._vocabulary
        return np.array([xxhash.xxh3_64_intdigest(w.encode()) for w in distinct], dtype=np.uint64)[ids]

    @cached_property
    def _folded(self) -> np.ndarray:
        distinct, ids = self._vocabulary
        hashes = np.array([xxhash.xxh3_64_intdigest(w.lower().encode()) for w in distinct], dtype=np.uint64)
        return hashes[ids][self.is_word] if distinct else hashes


def rolling_hash(values: np.ndarray, n: int) -> np.ndarray:
    """Polynomial hash, modulo 2^64, of each window of n values: (N - n + 1,) uint64."""
    if len(values) < n or n < 1:
        return np.zeros(0, dtype=np.uint64)
    hashes = values[: len(values) - n + 1].copy()
    for shift in range(1, n):
        hashes *= PRIME
        hashes += values[shift : len(values) - n + 1 + shift]
    return hashes ^ (hashes >> np.uint64(29))
