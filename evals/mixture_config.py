"""Settings of the conversations that SFT trains on: how many of which kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import ConfigError
from model.environments import CHAIN_SUM


@dataclass(frozen=True)
class MixtureConfig:
    """The key `mixture` of the section `sft_model` of params.yaml.

    The defaults leave something to learn for reinforcement learning on purpose: they show two ways to do a sum, by
    steps in the text and by calculator, the first more often, though a small model does it badly. Which one pays is
    for reinforcement learning to find out.
    """

    max_probes: int = 800  # facts that the base model is asked
    probe_tokens: int = 32  # tokens in its answer at most
    heldout_percent: int = 20  # of the subjects
    known_repeats: int = 4  # times that each known fact's questions occur
    unknown_pages: int = 200  # subjects of refusals: pages not memorised …
    invented: int = 120  # … and invented names
    unknown_phrasings: int = 1  # questions about each
    heldout_unknown: int = 150  # held-out subjects of either kind at most
    identity_repeats: int = 4  # times that each question about itself occurs
    worked: int = 1100  # sums worked out step by step
    called: int = 800  # sums by calculator
    dataset: str = "chain_sum"  # reasoning-gym's generator of both
    options: Mapping[str, Any] = field(
        default_factory=lambda: dict(CHAIN_SUM)
    )  # the generator's own settings

    def __post_init__(self) -> None:
        if not 0 < self.heldout_percent < 100:
            raise ConfigError(
                f"sft_model.mixture.heldout_percent: {self.heldout_percent} is not between 0 and 100."
            )
