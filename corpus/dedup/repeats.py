"""Lines and runs of words that a crawl repeats, removed from the documents that are kept. Off unless asked for.

Lines: a line of more than `dedup_lines` documents is boilerplate and is removed from all of them (as CCNet does with
paragraphs, arXiv 1911.00359, section 3.1). Two lines are the same when they differ in case, spacing and digits only.
Substrings: of a run of `dedup_substrings` tokens or more that occurs several times, the first occurrence is kept, in
the order of files and records (Lee et al., arXiv 2107.06499, who use 50 tokens). They sort all suffixes of the text
in memory; here each window of that many tokens is a 64-bit hash, grouped in files: the same windows are found, for
twelve to sixteen bytes of scratch a token. Text that repeats within one window's length loses nearly all of it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import xxhash

from corpus.config import CleanConfig
from corpus.dedup.spill import Partitions
from corpus.words import HAS_CJK, TOKEN, TOKEN_CJK, rolling_hash

# A document that lost text and has fewer words left is dropped: Gopher's minimum, arXiv 2112.11446, table A1.
LEAST_WORDS = 50
BYTES_A_LINE, BYTES_A_TOKEN = 40, 4  # of text, at least: to estimate how many there are
DIGIT, SPACES = re.compile(r"\d"), re.compile(r" {2,}")


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What is left of a document, and how many of its characters were in repeated lines and runs."""

    text: str
    in_lines: int
    in_substrings: int

    def ledger_columns(self) -> dict[str, str | float]:
        """The columns of LEDGER_SCHEMA that say how much of the document was removed."""
        removed = self.in_lines + self.in_substrings
        share = round(removed / (len(self.text) + removed), 6)
        detail = f"{self.in_lines} characters in repeated lines, {self.in_substrings} in repeated runs"
        return {"stage": "dedup", "rule": "repeats_removed", "value": share, "detail": detail}


def find_repeats(units: Sequence[Path], dropped: Sequence[set[int]], config: CleanConfig, out: Path) -> None:
    """Write out/NNNNN.lines and .tokens for each unit: the numbers of its repeated lines, and of the tokens at which a
    repeated window begins, counted over the kept documents. `dropped`: the other candidates of each unit.
    """
    out.mkdir(parents=True, exist_ok=True)
    columns = (pq.read_table(unit / "documents.parquet", columns=["n_bytes"])["n_bytes"] for unit in units)
    n_bytes = sum(sum(column.to_pylist()) for column in columns)
    if config.dedup_lines:
        kept = (list(_texts(unit, skip)) for unit, skip in zip(units, dropped, strict=True))
        _flag(kept, out, "lines", config, n_bytes // BYTES_A_LINE)
    if config.dedup_substrings:
        left = (
            [trimmed.text for trimmed in _remove_lines(list(_texts(unit, skip)), out, number)]
            for number, (unit, skip) in enumerate(zip(units, dropped, strict=True))
        )
        _flag(left, out, "tokens", config, n_bytes // BYTES_A_TOKEN)


def remove_repeats(texts: list[str], out: Path, number: int, config: CleanConfig) -> list[Trimmed]:
    """The kept texts of unit `number`, in order, without what find_repeats found in them."""
    without_lines = _remove_lines(texts, out, number)
    flags = _flags(out, number, "tokens")
    if not len(flags):
        return without_lines
    done, first = [], 0
    for each in without_lines:
        spans = [match.span() for match in _tokens(each.text)]
        low, high = np.searchsorted(flags, (first, first + len(spans)))
        text = _without(each.text, spans, (flags[low:high] - first).tolist(), config.dedup_substrings)
        done.append(Trimmed(text, each.in_lines, len(each.text) - len(text)))
        first += len(spans)
    return done


def _texts(unit: Path, dropped: set[int]) -> Iterator[str]:
    column = pq.read_table(unit / "documents.parquet", columns=["text"])["text"]
    return (text for number, text in enumerate(column.to_pylist()) if number not in dropped)


def _flag(units: Iterator[list[str]], out: Path, kind: str, config: CleanConfig, expected: int) -> None:
    """Find what repeats in the texts of all units, and write the places to files."""
    keys = Partitions(out / "keys", expected, config.dedup_memory_mb << 19, np.int64)
    ends, documents, end = [0], [0], 0
    for texts in units:
        for text in texts:
            hashes, places, length = _line_keys(text) if kind == "lines" else _window_keys(text, config)
            keys.add(hashes, places + end)
            end += length
            documents.append(end)
        ends.append(end)
    starts, unit_ends = np.array(documents), np.array(ends)
    for members, firsts in keys.groups():
        group = np.repeat(np.arange(len(firsts)), np.diff(np.append(firsts, len(members))))
        if kind == "lines":
            document = np.searchsorted(starts, members, side="right")
            new = np.concatenate(([True], (np.diff(document) != 0) | (np.diff(group) != 0)))
            often = np.bincount(group, weights=new) > config.dedup_lines
            flagged = members[often[group]]
        else:
            flagged = np.delete(members, firsts)  # members ascend: the first occurrence is kept
        flagged.sort()
        bounds = np.searchsorted(flagged, unit_ends)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            with open(out / f"{number:05d}.{kind}", "ab") as file:
                (flagged[bounds[number] : bounds[number + 1]] - unit_ends[number]).tofile(file)


def _flags(out: Path, number: int, kind: str) -> np.ndarray:
    file = out / f"{number:05d}.{kind}"
    return np.sort(np.fromfile(file, dtype=np.int64)) if file.is_file() else np.zeros(0, dtype=np.int64)


def _line_keys(text: str) -> tuple[np.ndarray, np.ndarray, int]:
    lines = [DIGIT.sub("0", " ".join(line.casefold().split())) for line in text.split("\n")]
    filled = [number for number, line in enumerate(lines) if line]
    hashes = (xxhash.xxh3_64_intdigest(lines[number].encode()) for number in filled)
    return np.fromiter(hashes, np.uint64, len(filled)), np.array(filled, dtype=np.int64), len(lines)


def _tokens(text: str) -> Iterator[re.Match[str]]:
    return (TOKEN if text.isascii() or not HAS_CJK.search(text) else TOKEN_CJK).finditer(text)


def _window_keys(text: str, config: CleanConfig) -> tuple[np.ndarray, np.ndarray, int]:
    tokens = [match.group() for match in _tokens(text)]
    known = {token: xxhash.xxh3_64_intdigest(token.encode()) for token in set(tokens)}
    hashes = np.fromiter((known[token] for token in tokens), np.uint64, len(tokens))
    windows = rolling_hash(hashes, config.dedup_substrings)
    return windows, np.arange(len(windows)), len(tokens)


def _remove_lines(texts: list[str], out: Path, number: int) -> list[Trimmed]:
    flags = _flags(out, number, "lines")
    if not len(flags):
        return [Trimmed(text, 0, 0) for text in texts]
    trimmed, first = [], 0
    for text in texts:
        lines = text.split("\n")
        low, high = np.searchsorted(flags, (first, first + len(lines)))
        repeated = set((flags[low:high] - first).tolist())
        left = "\n".join(line for place, line in enumerate(lines) if place not in repeated)
        trimmed.append(Trimmed(left, len(text) - len(left), 0))
        first += len(lines)
    return trimmed


def _without(text: str, spans: list[tuple[int, int]], windows: list[int], size: int) -> str:
    """The text without the tokens of the windows that begin at the given ones, and what is between those tokens."""
    parts, at = [], 0
    for first in windows:
        start, stop = spans[first][0], spans[first + size - 1][1]
        parts.append(text[at : max(at, start)])
        at = max(at, stop)
    lines = SPACES.sub(" ", "".join([*parts, text[at:]])).split("\n") if windows else []
    return "\n".join(line for line in lines if line.strip()) if windows else text
