r"""The rules of our byte-level BPE that are the same for learning a vocabulary and for using it: pure Python.

GPT-4's pre-tokenisation, except that digits stand alone (see `split_pattern`), and GPT-2's way to write bytes.
"""

BYTES = 256
MOST_DIGITS = 9  # in one token; cl100k has 3


def split_pattern(max_digits: int) -> str:
    r"""GPT-4's rule (tiktoken's cl100k_base, written as for Llama 3) for what BPE may not join across.

    In order: English contractions; a word with the one sign before it; up to `max_digits` digits; signs with a
    space before and newlines after; newlines with the blanks before; blanks. cl100k has 3 digits. Here 1: every
    number is then spelt in one way, digit by digit, so that a carry is the same for all of them; with left-to-right
    groups of 3 digits the places of two summands do not even line up (arXiv 2402.14903).
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
