"""Settings of the training set: which evaluations are kept out of training, and what counts as overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import ConfigError
from evals.sums import SUMS

MIN_WORDS = 5  # of an example; shorter ones ("2 + 2 =") occur everywhere and prove nothing


def _sums_only() -> dict[str, Any]:
    return {SUMS: None}


@dataclass(frozen=True)
class DecontaminationConfig:
    """The section `training_set` of params.yaml. The measure of overlap: evals/contamination.py."""

    eval_sets: Mapping[str, Any] = field(default_factory=_sums_only)  # name -> null, path or {path, columns}
    ngram: int = 8  # words in a run
    share: float = 0.5  # of an example's words; a document that covers more is left out

    def __post_init__(self) -> None:
        if self.ngram < MIN_WORDS or not 0 <= self.share < 1:
            raise ConfigError(f"training_set: ngram must be at least {MIN_WORDS}, share from 0 to below 1.")
