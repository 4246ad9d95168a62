"""Intervals for proportions, so that every accuracy comes with its uncertainty.

Wilson's score interval for one proportion (E. B. Wilson, 1927), Newcombe's hybrid score interval for the
difference of two independent proportions (R. G. Newcombe, Statistics in Medicine 17, 1998, method 10) and a
paired bootstrap for two models measured on the same problems (Efron and Tibshirani, 1993; for NLP: Koehn, 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Proportion:
    """`successes` of `n` with its Wilson interval; the rate of an empty sample is 0 in [0, 1]."""

    successes: int
    n: int
    rate: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """Rounded to six digits, so that reports are byte-identical where the counts are equal."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] (n={self.n})"


@dataclass(frozen=True)
class Difference:
    """A difference of rates (second minus first) with an interval and the name of the method."""

    difference: float
    low: float
    high: float
    method: str

    def as_dict(self) -> dict[str, Any]:
        """Rounded as a Proportion's."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def __str__(self) -> str:
        return f"{100 * self.difference:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval without continuity correction; (0, 1) where n is 0."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is not a proportion.")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def proportion(outcomes: Sequence[bool], confidence: float = 0.95) -> Proportion:
    """The rate of true outcomes with its Wilson interval."""
    successes, n = sum(map(bool, outcomes)), len(outcomes)
    low, high = wilson_interval(successes, n, confidence)
    return Proportion(successes, n, successes / n if n else 0.0, low, high)


def newcombe_difference(first: Proportion, second: Proportion) -> Difference:
    """second − first for independent samples, from the two Wilson intervals (Newcombe 1998, method 10)."""
    d = second.rate - first.rate
    low = d - sqrt((second.rate - second.low) ** 2 + (first.high - first.rate) ** 2)
    high = d + sqrt((second.high - second.rate) ** 2 + (first.rate - first.low) ** 2)
    return Difference(d, low, high, "Newcombe hybrid score")


def paired_bootstrap(
    first: Sequence[bool],
    second: Sequence[bool],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """second − first on the same problems; percentile interval over resampled problems.

    A problem's difference is −1, 0 or +1, so resampling problems with replacement is one multinomial draw over
    the three counts: exact and cheap.
    """
    if len(first) != len(second):
        raise ValueError(f"A paired comparison needs the same problems, not {len(first)} and {len(second)}.")
    n = len(first)
    if n == 0:
        return Difference(0.0, -1.0, 1.0, "paired bootstrap")
    wins = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    losses = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    draws = np.random.default_rng(seed).multinomial(
        n, [losses / n, 1 - (losses + wins) / n, wins / n], resamples
    )
    differences = (draws[:, 2] - draws[:, 0]) / n
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference((wins - losses) / n, float(low), float(high), "paired bootstrap")
