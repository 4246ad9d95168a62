"""Settings of the training data: which documents are held out, and how often each of the others is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import ConfigError

TRAIN, HELD_OUT, NEAR_COPY = "train", "held_out", "near_copy"  # splits of the documents (shards.py)
PACKINGS = ("stream", "best_fit")  # order.py


@dataclass(frozen=True)
class SplitConfig:
    """Which share of the documents is held out, and how often an epoch reads each of the others.

    upsample: host -> times an epoch reads its documents, none of which is held out. weights: name of a crawl or of
    a host -> times an epoch reads its documents; 0.5 is each of them every other epoch, 0 never.
    """

    held_out: float = 0.05
    upsample: Mapping[str, int] | None = None
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out: {self.held_out} is a share of the documents, from 0 to below 1.")
        for host, times in (self.upsample or {}).items():
            if not isinstance(times, int) or times < 1:
                raise ConfigError(f"upsample: {host}: {times} is not a whole number of times, 1 or more.")
        for name, weight in (self.weights or {}).items():
            if not isinstance(weight, int | float) or not (0 <= weight < math.inf):
                raise ConfigError(f"weights: {name}: {weight} is not a number of times, 0 or more.")
            if name in (self.upsample or {}):
                raise ConfigError(f"{name} is in both upsample and weights. Name it in one of them.")


def check_packing(packing: str) -> None:
    """Raise ConfigError for a packing that there is not."""
    if packing not in PACKINGS:
        raise ConfigError(f"packing: {packing} is none of {', '.join(PACKINGS)}.")
