"""The rules of our byte-level BPE, for learning a vocabulary as for using it. Light: imports no library.

GPT-4's pre-tokenisation, except that digits are single (see `split_pattern`), and GPT-2's characters for bytes.
"""

BYTES = 256
MOST_DIGITS = 9  # in one token; cl100k has 3


def split_pattern(max_digits: int) -> str:
    r"""GPT-4's pattern (tiktoken's cl100k_base, written as for Llama 3): BPE merges only within what it matches.

    In order: English contractions; a word with one punctuation character before it; up to `max_digits` digits;
    punctuation with a space before and newlines after; newlines with the whitespace before; whitespace. cl100k has 3
    digits. Here 1: every number is then written in one way, digit by digit, so that a carry is the same for all of
    them; with left-to-right groups of 3 digits the digits of two summands are not even aligned (arXiv 2402.14903).
    """
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,"
        + str(max_digits)
        + r"}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def byte_of_char() -> dict[str, int]:
    """GPT-2's table: byte-level BPE writes each byte as a printable character. Character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(BYTES) if b not in printable]
    return {chr(b): b for b in printable} | {chr(BYTES + n): b for n, b in enumerate(others)}
