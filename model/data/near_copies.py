"""Held-out documents that training documents repeat: they measure how well a model remembers, not how well it predicts.

A split by host and deduplication do not separate them: agency stories are on many hosts, each slightly edited, and
deduplication only covers Jaccard similarities from 0.8. Measured as for GPT-3 (arXiv 2005.14165, appendix C): by runs
of 13 tokens. One pass over the shards collects the runs of the held-out documents, a second looks them up in the
training documents. Of a large corpus the runs are sampled by their hashes, so that memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

RUN = 13  # tokens
MAX_RUNS = 2**24  # of the held-out documents; above, every second is used, every fourth …
AT_ONCE = 2**16  # tokens; intermediate results stay in the processor's cache
ODD = np.uint64(0x9E3779B97F4A7C15)
BITS = 24  # of a hash, for a first lookup in a table of 16 MiB


def repeated(
    shards: Sequence[np.ndarray], separator: int, shard: np.ndarray, start: np.ndarray, held_out: np.ndarray
) -> np.ndarray:
    """For each held-out document the share of its runs that are in training documents; 0 for all others and short ones.

    shards: their tokens. shard, start and held_out (bool): one entry a document, in the order of the shards.
    """
    bounds = np.searchsorted(shard, np.arange(len(shards) + 1))
    ends = np.append(start[1:], 0)
    last = bounds[1:][np.diff(bounds) > 0] - 1
    ends[last] = [len(shards[s]) for s in shard[last]]
    tokens = int((ends - start)[held_out].sum())
    sample = 2 ** (tokens // MAX_RUNS).bit_length()

    def runs(wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(hashes, documents) of the runs of the wanted documents."""
        for number, shard_tokens in enumerate(shards):
            first, end = bounds[number], bounds[number + 1]
            for begin in range(0, len(shard_tokens), AT_ONCE):
                hashes = _hashes(shard_tokens[begin : begin + AT_ONCE + RUN - 1], separator, sample)
                document = first + np.searchsorted(start[first:end], begin + hashes[0], "right") - 1
                here = wanted[document]
                yield hashes[1][here], document[here]

    found = [(np.empty(0, np.uint64), np.empty(0, np.int64)), *runs(held_out)]
    hashes, owner = (np.concatenate(part) for part in zip(*found, strict=True))
    table, place = np.unique(hashes, return_inverse=True)
    possible = np.zeros(2**BITS, bool)
    possible[table >> np.uint64(64 - BITS)] = True
    seen = np.zeros(len(table), bool)
    for others, _ in runs(~held_out) if len(table) else ():
        others = others[possible[others >> np.uint64(64 - BITS)]]
        at = np.minimum(np.searchsorted(table, others), len(table) - 1)
        seen[at[table[at] == others]] = True
    total = np.bincount(owner, minlength=len(start))
    return np.bincount(owner, seen[place], minlength=len(start)) / np.maximum(1, total)


def _hashes(tokens: np.ndarray, separator: int, sample: int) -> tuple[np.ndarray, np.ndarray]:
    """(places, hashes) of the runs in `tokens` that are within one document; one in `sample` (2, 4, 8 …) of them."""
    count = len(tokens) - RUN + 1
    if count < 1:
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    one = tokens.astype(np.uint64)
    two = _joined(one, one, 1)
    four = _joined(two, two, 2)
    eight = _joined(four, four, 4)
    hashes = _joined(_joined(eight, four, 8), one, 12)  # 8 + 4 + 1 tokens
    hashes ^= hashes >> np.uint64(32)
    wanted = hashes & np.uint64(sample - 1) == 0
    for place in np.flatnonzero(tokens == separator).tolist():
        wanted[max(0, place - RUN + 1) : place + 1] = False
    places = np.flatnonzero(wanted)
    return places, hashes[places]


def _joined(left: np.ndarray, right: np.ndarray, apart: int) -> np.ndarray:
    """At each place the hash of left's run there and right's run `apart` tokens later."""
    joined = left[: len(right) - apart] * ODD
    joined += right[apart:]
    joined ^= joined >> np.uint64(29)
    return joined
