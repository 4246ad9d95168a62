"""Text to token ids and back, with a vocabulary of ours or another byte-level BPE in Hugging Face's tokenizer.json.

Notable:
- every byte is a token, so any text and any byte string comes back from its tokens unchanged; no normalisation;
- text is data: a page that contains `<|im_end|>` gets ordinary tokens, never the special one. Special tokens enter
  only where our own code puts them (chat.py, the document separator), or by `encode(…, specials=True)`;
- ordinary text is encoded by tiktoken, some five times as fast as the library whose format it is, to the same ids.

How a vocabulary is learned: vocabulary/train.py.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tiktoken
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from core.errors import DataError, MissingError
from model.vocabulary.byte_level import BYTES, MOST_DIGITS, byte_of_char, split_pattern
from model.vocabulary.special import SPECIAL_TOKENS

T = TypeVar("T")
LONG_WHITESPACE = re.compile(r"\s{100000}")  # tiktoken's regex overflows its stack at some ten times as many


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Read a tokenizer folder, ours or any other that has a tokenizer.json of byte-level BPE.

    Raises MissingError where there is none, DataError where its tokens are not written as bytes.
    """
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise MissingError(
            f"{file} is missing, so this is no tokenizer folder. Make one with 'stemma materialize tokenizer'."
        )
    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(file)))
    except KeyError as char:
        raise DataError(
            f"{file} is no byte-level BPE: it has a token with {char}, which stands for no byte. "
            "Stemma reads vocabularies like GPT-2's, Llama 3's and Qwen's, not SentencePiece's (Llama 2, Gemma)."
        ) from char


class SpecialId:
    """An attribute of `Tokenizer`: the id of a special token. Raises DataError where a foreign vocabulary lacks it."""

    def __init__(self, name: str) -> None:
        self.token = SPECIAL_TOKENS[name]

    def __get__(self, tokenizer: Tokenizer, owner: type) -> int:
        if self.token not in tokenizer.special_ids:
            raise DataError(
                f"The vocabulary has no token {self.token}, which this needs. Use a model whose tokenizer has it."
            )
        return tokenizer.special_ids[self.token]


class Tokenizer:
    """Text to token ids and back."""

    eos_id, pad_id = SpecialId("eos"), SpecialId("pad")
    im_start_id, im_end_id = SpecialId("im_start"), SpecialId("im_end")
    tool_call_id, tool_call_end_id = SpecialId("tool_call"), SpecialId("tool_call_end")
    tool_response_id, tool_response_end_id = SpecialId("tool_response"), SpecialId("tool_response_end")
    think_id, think_end_id = SpecialId("think"), SpecialId("think_end")

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        self._trusted = bpe
        self._plain = tokenizers.Tokenizer.from_str(bpe.to_str())
        self._plain.encode_special_tokens = True  # encode their spelling instead of recognising them
        self.vocab_size: int = bpe.get_vocab_size()
        ids = ((token, bpe.token_to_id(token)) for token in SPECIAL_TOKENS.values())
        self.special_ids: dict[str, int] = {
            token: i for token, i in ids if i is not None
        }  # those that it has
        self._bytes = _token_bytes(bpe)
        self._fast = self._fast_encoding()

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Text -> ids. `specials=True` recognises special tokens: only for text that our own code composed."""
        if not specials and (fast := self._fast_for(text)) is not None:
            return fast.encode_ordinary(text)
        return (self._trusted if specials else self._plain).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str], specials: bool = False) -> list[list[int]]:
        """Many texts at once, on all cores."""
        if specials:
            return [e.ids for e in self._trusted.encode_batch_fast(texts, add_special_tokens=False)]
        return _on_all_cores(self.encode, texts)

    def encode_arrays(self, texts: list[str]) -> list[npt.NDArray[np.uint32]]:
        """Many texts at once, on all cores; uint32 ids, without a Python object for each."""
        return _on_all_cores(self._encode_array, texts)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Any bytes -> ids; what is not UTF-8 becomes single-byte tokens, so `decode_bytes` gives it back."""
        ids: list[int] = []
        start = 0
        text = data.decode("utf-8", "surrogateescape")
        for place, char in enumerate(text):
            if "\udc80" <= char <= "\udcff":
                ids += self.encode(text[start:place])
                ids.append(self._byte_ids[ord(char) - 0xDC00])
                start = place + 1
        return ids + self.encode(text[start:])

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text, special tokens by their spelling; bytes that are no whole UTF-8 character become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Ids -> the exact bytes they stand for."""
        return b"".join([self._bytes[i] for i in ids])

    def _encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        if (fast := self._fast_for(text)) is not None:
            return fast.encode_to_numpy(text, disallowed_special=())
        return np.array(self.encode(text), np.uint32)

    def _fast_for(self, text: str) -> tiktoken.Encoding | None:
        """tiktoken, if it is to encode this text."""
        return self._fast if len(text) < 100_000 or not LONG_WHITESPACE.search(text) else None

    def _fast_encoding(self) -> tiktoken.Encoding | None:
        """tiktoken with our ranks; None for a foreign vocabulary, whose rules it might read differently."""
        vocab, merges, rules = _rules(self._trusted)
        ranks = [vocab["".join(pair)] for pair in merges]
        whole = len(vocab) == BYTES + len(ranks) + len(self.special_ids)
        if not whole or ranks != sorted(ranks):
            return None
        for digits in range(1, MOST_DIGITS + 1):
            if rules == _rules(byte_level_bpe(models.BPE(), digits))[2]:
                special = set(self.special_ids.values())
                return tiktoken.Encoding(
                    "ours",
                    pat_str=split_pattern(digits),
                    mergeable_ranks={token: i for i, token in enumerate(self._bytes) if i not in special},
                    special_tokens=self.special_ids,
                )
        return None

    @property
    def _byte_ids(self) -> dict[int, int]:
        return {token[0]: i for i, token in reversed(list(enumerate(self._bytes))) if len(token) == 1}


def byte_level_bpe(model: models.BPE, max_digits: int) -> tokenizers.Tokenizer:
    """The library's tokenizer for a vocabulary and its merges, with our pre-tokenisation and decoding."""
    bpe = tokenizers.Tokenizer(model)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(split_pattern(max_digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    return bpe


def _rules(bpe: tokenizers.Tokenizer) -> tuple[dict[str, int], list[list[str]], dict[str, Any]]:
    """(vocabulary, merges, what else decides how ordinary text is encoded)."""
    spec = json.loads(bpe.to_str())
    vocab, merges = spec["model"].pop("vocab", None) or {}, spec["model"].pop("merges", None) or []
    return vocab, merges, {name: spec[name] for name in ("normalizer", "pre_tokenizer", "model")}


def _on_all_cores(encode: Callable[[str], T], texts: list[str]) -> list[T]:
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # both libraries release Python's global lock
        return list(threads.map(encode, texts))


def _token_bytes(bpe: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of each token. Raises KeyError for a character that stands for no byte."""
    table = byte_of_char()
    added = {i: token.content for i, token in bpe.get_added_tokens_decoder().items()}
    tokens = sorted((i, token) for token, i in bpe.get_vocab().items())
    result = [b""] * (tokens[-1][0] + 1)
    for i, token in tokens:
        result[i] = added[i].encode() if i in added else bytes(table[char] for char in token)
    return result
