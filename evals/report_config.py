"""Settings of the evaluation reports."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import ConfigError
from evals.sums import N_SUMS, SUMS_SEED


@dataclass(frozen=True)
class EvalConfig:
    """The section `eval_reports` of params.yaml."""

    problems: int = N_SUMS  # different held-out problems of the RL task
    facts: int = 150  # held-out subjects of each kind at most
    max_new_tokens: int = 48  # in an answer to a problem
    heldout_bytes: int = 500_000  # of held-out text at most, for bits per byte
    baseline_bytes: int = 64_000_000  # of training text at most, given to zstd as its dictionary
    min_gain: float = 0.15  # accuracy that RL must add to be promoted
    max_loss: float = 0.15  # recall that it may lose, and hallucination that it may gain
    seed: int = SUMS_SEED  # of the held-out problems
    threads: int = 2  # of PyTorch

    def __post_init__(self) -> None:
        if self.problems < 1 or self.threads < 1:
            raise ConfigError("eval_reports: problems and threads must be at least 1.")
