"""How much of a held-out document is in training documents, against sets of runs document by document."""

import numpy as np
import pytest

from model.data import near_copies
from model.data.near_copies import RUN, repeated

SEPARATOR = 0


def lay_out(documents: list[np.ndarray], per_shard: int):
    """(shards, shard, start) of documents, each followed by the separator."""
    shards, shard, start = [], [], []
    for first in range(0, len(documents), per_shard):
        part = [np.append(d, SEPARATOR).astype(np.uint16) for d in documents[first : first + per_shard]]
        shards.append(np.concatenate(part))
        start += np.cumsum([0, *map(len, part[:-1])]).tolist()
        shard += [len(shards) - 1] * len(part)
    return shards, np.array(shard), np.array(start)


def brute_force(documents: list[np.ndarray], held: np.ndarray) -> list[float]:
    runs = [[tuple(d[i : i + RUN].tolist()) for i in range(len(d) - RUN + 1)] for d in documents]
    trained = {run for its, h in zip(runs, held, strict=True) if not h for run in its}
    return [
        sum(run in trained for run in its) / len(its) if h and its else 0.0
        for its, h in zip(runs, held, strict=True)
    ]


@pytest.fixture
def documents() -> list[np.ndarray]:
    """Documents of which many begin or end like another."""
    draw = np.random.default_rng(1)
    stems = [draw.integers(1, 500, 80) for _ in range(8)]
    made = []
    for i in range(150):
        own, stem = draw.integers(1, 500, draw.integers(1, 60)), stems[i % 8][: draw.integers(1, 80)]
        made.append(np.concatenate([own, stem] if i % 2 else [stem, own]) if i % 3 else own)
    return made


@pytest.mark.parametrize("at_once", [7, 100, 2**20])
def test_shares_are_those_of_sets_of_runs(documents, monkeypatch, at_once):
    monkeypatch.setattr(near_copies, "AT_ONCE", at_once)
    held = np.random.default_rng(2).random(len(documents)) < 0.2
    got = repeated(*with_separator(lay_out(documents, 40)), held)
    assert got == pytest.approx(brute_force(documents, held)) and 0.5 < got.max() <= 1


def with_separator(laid):
    shards, shard, start = laid
    return shards, SEPARATOR, shard, start


def test_a_sample_of_many_runs_gives_nearly_the_same(monkeypatch):
    draw = np.random.default_rng(3)
    trained = draw.integers(1, 500, 40_000)
    held = [
        np.concatenate([trained[i : i + 300 * i % 3001], draw.integers(1, 500, 1500)]) for i in range(1, 20)
    ]
    documents, flags = [trained, *held], np.array([False, *[True] * len(held)])
    exact = repeated(*with_separator(lay_out(documents, 50)), flags)
    monkeypatch.setattr(near_copies, "MAX_RUNS", 8000)
    sampled = repeated(*with_separator(lay_out(documents, 50)), flags)
    assert 0 < abs(sampled - exact).max() < 0.1 and exact.max() > 0.6


def test_without_held_out_or_long_documents_there_are_no_copies():
    documents = [np.arange(1, 30), np.arange(1, 30), np.arange(1, 5)]
    laid = with_separator(lay_out(documents, 2))
    assert repeated(*laid, np.zeros(3, bool)).tolist() == [0, 0, 0]
    assert repeated(*laid, np.array([True, False, True])).tolist() == [1, 0, 0]
