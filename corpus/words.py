"""One tokenisation of a document that serves every quality rule and the shingles of deduplication.

Words are runs of letters, digits and marks, with inner dots; every other visible character is a token of its own (a
"sign"), as in the tokenisers of published pipelines; Chinese and Japanese characters are one word each. No token spans
a space, so each space-separated chunk is tokenised once and cached in a vocabulary that pages share, and a text becomes
one small integer array: lengths, hashes and kinds of its tokens are look-ups by id, and no string is processed twice.
The arrays of a text depend on the text alone, not on what the vocabulary has seen before.
"""

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import chain

import numpy as np
import xxhash

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
HAS_CJK = re.compile(f"[{CJK}]")
# As in spaCy: addresses, "U.S.", "J.", "@ann", "example.com", "1,000.50", "10:30", "1/2/2026", "GLP-1" are one token,
# "Ann's", "don't" and "1990-1995" are several. Decisions agree with datatrove's on 99 % of real English pages.
# The fourth alternative is a fast path of the fifth, for words that none of its signs follows.
_TOKEN = (
    r"https?://\S+|@W+|[A-Z](?<!\w[A-Z])\.(?:[A-Z]\.)*"
    r"|W++(?![.,:/\-])|W+(?:\.W+|(?<=\d)[,:/]\d+|(?<=[^\W\d_])-\d\w*)*|['’]W+"
    r"|\.\.+|--+|[^\w\s]"
)
TOKEN = re.compile(_TOKEN.replace("W+", r"\w+"))
TOKEN_CJK = re.compile(f"[{CJK}]|" + _TOKEN.replace("W+", rf"[^\W{CJK}]+"))
PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, high entropy: the multiplier of the rolling n-gram hash
LONGEST_CHUNK = 48  # characters; longer ones rarely recur and are not cached
MOST_CHUNKS = 1 << 18  # some 60 MB; beyond, a new vocabulary replaces the old one
_ARRAYS = {"length": np.int64, "is_word": bool, "has_letter": bool, "exact": np.uint64, "folded": np.uint64}


def tokenize(line: str) -> list[str]:
    """Words and signs of a text, in order."""
    return (TOKEN if line.isascii() or not HAS_CJK.search(line) else TOKEN_CJK).findall(line)


class _Ids(dict[str, int]):
    """token -> its id; a new token gets the next one. `order` lists the tokens by id."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def __missing__(self, token: str) -> int:
        new = self[token] = len(self.order)
        self.order.append(token)
        return new


class _Chunks(dict[str, tuple[int, ...]]):
    """A text without spaces -> the ids of its tokens; short ones are cached."""

    def __init__(self, ids: _Ids):
        super().__init__()
        self.ids = ids

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        found = tuple(map(self.ids.__getitem__, tokenize(chunk)))
        if len(chunk) <= LONGEST_CHUNK:
            self[chunk] = found
        return found


class Vocabulary:
    """Every token seen so far by id, with its properties in arrays indexed by that id."""

    def __init__(self) -> None:
        self.ids = _Ids()
        self.chunks = _Chunks(self.ids)
        self.described = 0  # tokens that the arrays cover
        self.arrays: dict[str, np.ndarray] = {
            name: np.zeros(1 << 12, dtype=kind) for name, kind in _ARRAYS.items()
        }
        # pattern -> (tokens searched so far, which of them match)
        self.searched: dict[re.Pattern[str], tuple[int, np.ndarray]] = {}

    def describe(self) -> None:
        """Extend the arrays to the tokens that were added since the last call."""
        known, total = self.described, len(self.ids.order)
        if known == total:
            return
        new, self.described = self.ids.order[known:], total
        while total > len(self.arrays["length"]):
            self.arrays = {n: np.concatenate((a, np.zeros_like(a))) for n, a in self.arrays.items()}
        arrays = self.arrays
        arrays["length"][known:total] = [len(token) for token in new]
        arrays["is_word"][known:total] = [t.isalnum() or any(map(str.isalnum, t)) for t in new]
        arrays["has_letter"][known:total] = [t.isalpha() or any(map(str.isalpha, t)) for t in new]
        arrays["exact"][known:total] = [xxhash.xxh3_64_intdigest(token.encode()) for token in new]
        arrays["folded"][known:total] = [xxhash.xxh3_64_intdigest(token.lower().encode()) for token in new]

    def matching(self, pattern: re.Pattern[str]) -> np.ndarray:
        """Which tokens a pattern is found in, searched once a token: (at least the number of tokens,) bool."""
        known, found = self.searched.get(pattern, (0, np.zeros(0, dtype=bool)))
        if known < self.described:
            if self.described > len(found):
                found = np.concatenate((found, np.zeros(self.described, dtype=bool)))
            new = self.ids.order[known : self.described]
            found[known : self.described] = [pattern.search(token) is not None for token in new]
            self.searched[pattern] = self.described, found
        return found


@lru_cache(maxsize=1)
def _shared() -> Vocabulary:
    return Vocabulary()


def vocabulary() -> Vocabulary:
    """This process's vocabulary, replaced by a new one when it has grown large. Texts keep the one of their ids."""
    if len(_shared().chunks) > MOST_CHUNKS or len(_shared().ids) > MOST_CHUNKS:
        _shared.cache_clear()
    return _shared()


class Words:
    """A text, its lines and the ids of their tokens; derived arrays are computed when first used.

    `title`: the first line is the page's title. `known`: the vocabulary of the ids. `ids`: of each token, (N,) int64.
    """

    _chunks: tuple[list[list[str]], list[tuple[int, ...]]]  # each line's chunks, and each chunk's ids

    def __init__(self, lines: list[str], title: bool, known: Vocabulary, ids: np.ndarray):
        self.lines = lines
        self.title = title
        self.known = known
        self.ids = ids

    @classmethod
    def of(cls, text: str, title: bool = False) -> "Words":
        """Tokenise a text."""
        return cls.of_lines(text.split("\n"), title)

    @classmethod
    def of_lines(cls, lines: list[str], title: bool = False) -> "Words":
        """Tokenise a text given as lines."""
        known = vocabulary()
        chunks = [line.split() for line in lines]
        found = list(map(known.chunks.__getitem__, chain.from_iterable(chunks)))
        known.describe()
        words = cls(lines, title, known, np.fromiter(chain.from_iterable(found), np.int64))
        words._chunks = chunks, found
        return words

    @cached_property
    def per_line(self) -> np.ndarray:
        """Tokens in each line: (L,) int64."""
        chunks, found = self._chunks
        tokens = np.fromiter(chain((0,), map(len, found)), np.int64).cumsum()
        until = np.fromiter(chain((0,), map(len, chunks)), np.int64).cumsum()
        return np.diff(tokens[until])

    def only(self, kept: Sequence[bool]) -> "Words":
        """The text of the kept lines only; `kept` has one flag a line."""
        lines = [line for line, stays in zip(self.lines, kept, strict=True) if stays]
        flags = np.array(kept, dtype=bool)
        ids = self.ids[np.repeat(flags, self.per_line)]
        words = Words(lines, self.title and bool(lines), self.known, ids)
        words.per_line = self.per_line[flags]
        return words

    @cached_property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)

    @cached_property
    def tokens(self) -> list[str]:
        """All words and signs, in order."""
        order = self.known.ids.order
        return [order[token] for token in self.ids.tolist()]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Characters of each token: (N,) int64."""
        return self.known.arrays["length"][self.ids]

    @cached_property
    def ends(self) -> np.ndarray:
        """Characters in the tokens before each token, and in all of them: (N + 1,) int64."""
        return np.concatenate(([0], np.cumsum(self.lengths)))

    @cached_property
    def is_word(self) -> np.ndarray:
        """Whether each token is a word rather than a sign: (N,) bool."""
        return self.known.arrays["is_word"][self.ids]

    @cached_property
    def has_letter(self) -> np.ndarray:
        """Whether each token has at least one letter: (N,) bool."""
        return self.known.arrays["has_letter"][self.ids]

    def matches(self, pattern: re.Pattern[str]) -> bool:
        """Whether a pattern is found in any token."""
        return bool(self.known.matching(pattern)[self.ids].any())

    @cached_property
    def n_words(self) -> int:
        """Number of words, without signs."""
        return int(np.count_nonzero(self.is_word))

    def count_of(self, tokens: frozenset[str], among: int | None = None) -> int:
        """How many of `tokens` occur, as written, among the first `among` tokens of the text (None: all)."""
        id_of = self.known.ids.get
        here = set(self.ids[:among].tolist())
        return sum([id_of(token) in here for token in tokens])

    def ngram_hashes(self, n: int) -> np.ndarray:
        """A 64-bit hash of each n-gram of tokens as written, signs included: (N - n + 1,) uint64."""
        return rolling_hash(self._exact, n)

    def shingles(self, n: int) -> np.ndarray:
        """Sorted distinct 64-bit hashes of n-grams of lower-case words, without signs: (S,) uint64.

        A text of fewer than n words has one shingle: all of it.
        """
        if not len(self.folded):
            return self.folded
        hashes = np.sort(rolling_hash(self.folded, min(n, len(self.folded))))
        return hashes[np.concatenate(([True], hashes[1:] != hashes[:-1]))]

    @cached_property
    def folded(self) -> np.ndarray:
        """A 64-bit hash of each word in lower case, without signs: (n_words,) uint64."""
        return self.folded_tokens[self.is_word]

    @cached_property
    def folded_tokens(self) -> np.ndarray:
        """A 64-bit hash of each token in lower case: (N,) uint64."""
        return self.known.arrays["folded"][self.ids]

    @cached_property
    def _exact(self) -> np.ndarray:
        return self.known.arrays["exact"][self.ids]

    def compact(self) -> "Words":
        """Keep the text, its number of words and the hashes for shingles; free the rest of the memory."""
        kept: dict[str, object] = {"lines": self.lines, "title": self.title, "text": self.text}
        kept |= {"n_words": self.n_words, "folded": self.folded}
        self.__dict__ = kept
        return self


def rolling_hash(values: np.ndarray, n: int) -> np.ndarray:
    """Polynomial hash, modulo 2^64, of each window of n values: (N - n + 1,) uint64."""
    if len(values) < n or n < 1:
        return np.zeros(0, dtype=np.uint64)
    hashes = values[: len(values) - n + 1].copy()
    for shift in range(1, n):
        hashes *= PRIME
        hashes += values[shift : len(values) - n + 1 + shift]
    return hashes ^ (hashes >> np.uint64(29))
