"""The section `tokenizer` of params.yaml. Light: imports no library."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import ConfigError
from model.vocabulary.byte_level import BYTES, MOST_DIGITS
from model.vocabulary.special import SPECIAL_TOKENS


@dataclass(frozen=True)
class TokenizerConfig:
    """The section `tokenizer` of params.yaml."""

    vocab_size: int = 1024  # tokens, special ones and the 256 bytes included; a small corpus may yield fewer
    max_digits: int = 1  # digits in one token at most
    min_frequency: int = 2  # a pair seen less often is not merged

    def __post_init__(self) -> None:
        least = BYTES + len(SPECIAL_TOKENS)
        if self.vocab_size < least:
            raise ConfigError(
                f"tokenizer.vocab_size={self.vocab_size} has no room for {BYTES} bytes and "
                f"{len(SPECIAL_TOKENS)} special tokens. Set it to {least} or more in params.yaml."
            )
        if not 1 <= self.max_digits <= MOST_DIGITS:
            raise ConfigError(
                f"tokenizer.max_digits={self.max_digits}: set it to a number from 1 to {MOST_DIGITS} in params.yaml."
            )
