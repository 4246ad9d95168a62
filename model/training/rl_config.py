"""The settings of reinforcement learning: the section `rl_model` of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import ConfigError
from model.environments import CHAIN_SUM, Environment
from model.training.train_config import TrainConfig

ADVANTAGES = ("dr_grpo", "grpo")


@dataclass(frozen=True)
class RlConfig(TrainConfig):
    """The section `rl_model` of params.yaml."""

    steps: int = 25
    prompts: int = 32  # problems a step, over all processes
    samples: int = 8  # answers to each
    micro_batches: int = 4  # twice as fast on CPU as 1: the logits of a part stay in the cache
    max_new_tokens: int = 48  # of an answer
    lr: float = 3e-4  # at 0.8M parameters 1e-3 and more lose what SFT taught
    schedule: str = "linear"
    final_lr: float = 0.1  # as a share of lr
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.0  # matrices only
    beta2: float = 0.99
    advantage: str = "dr_grpo"  # or grpo: divided by the group's standard deviation and the answer's length
    rehearsal: float = 0.1  # weight of the likelihood of SFT's conversations on other matters; 0: none
    rehearsal_rows: int = 32  # such conversations a step, over all processes
    kl: float = 0.0  # weight of the KL penalty towards the SFT model; 0: it is only measured
    dataset: str = "chain_sum"  # a generator of reasoning-gym
    options: Mapping[str, Any] = field(default_factory=lambda: dict(CHAIN_SUM))  # of the generator
    calculator: bool = True  # whether calls of it are answered
    pool: int = 3000  # different training problems; fewer where the generator has no more
    eval_problems: int = 200  # held-out problems, answered greedily
    eval_every: int = 5  # steps
    log_every: int = 1  # steps
    checkpoint_every: int = 20  # steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.advantage not in ADVANTAGES:
            raise ConfigError(f"rl_model.advantage: {self.advantage!r} is not one of {ADVANTAGES}.")
        if self.samples < 2 or self.prompts < 1:
            raise ConfigError("rl_model: a group needs 2 samples or more, and a step 1 prompt or more.")
        if self.zero_stage == 3:
            raise ConfigError(
                "rl_model.zero_stage: 3 shards the weights, and sampling needs them whole. Use 0 to 2."
            )

    @property
    def environment(self) -> Environment:
        """The problems, and whether the calculator answers."""
        return Environment(self.dataset, self.options, self.calculator)
