"""The batch of a reinforcement learning step: problems, answers of the current model, rewards, and training rows.

Notable:
- strictly on-policy: answers come from the very weights that the step updates, sampled at temperature 1 from the full
  softmax, the distribution that scores them. So there is no importance ratio and nothing to clip;
- problems whose answers all earn the same reward teach nothing and are left out of the gradient (DAPO, 2503.14476);
- a model that only ever sees sums forgets the rest, so every step also rehearses SFT conversations of other kinds than
  the rewarded one, by their plain likelihood (PPO-ptx of InstructGPT, arXiv 2203.02155).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.attempts import chat_prompt, completion_text
from model.chat import render
from model.data.batch import Batch, Row
from model.environments import Environment, Problem
from model.generation.batch import Completion
from model.generation.generate import generate
from model.grpo import group_advantages, policy_rows, rollout_metrics, with_rehearsal
from model.network.transformer import Transformer
from model.tokenizer import Tokenizer
from model.training.rl_config import RlConfig
from model.training.trainer import step_seed
from model.training.world import World

REWARDED_KINDS = ("arithmetic", "calculator")  # of conversations (evals/conversations.py): not rehearsed


class Rollouts:
    """Makes the batch of a step: a pure function of the seed, the step and the current weights."""

    def __init__(
        self,
        model: Transformer,
        reference: nn.Module,
        tokenizer: Tokenizer,
        environment: Environment,
        config: RlConfig,
        world: World,
        rehearsed: Sequence[Row] = (),
    ):
        """reference: the SFT model, for the KL. rehearsed: conversations to pick from in every step."""
        self.rehearsed = rehearsed
        self.model, self.reference, self.tokenizer = model, reference.requires_grad_(False), tokenizer
        self.environment, self.config, self.world = environment, config, world
        self.problems = training_pool(environment, config)

    def batch(self, step: int) -> Batch:
        """This rank's answers to the step's problems, as rows with their advantages."""
        config = self.config
        rng = np.random.default_rng([config.seed, step])
        chosen = rng.choice(len(self.problems), config.prompts, replace=config.prompts > len(self.problems))
        problems = [self.problems[i] for i in chosen[self.world.share(config.prompts)]]
        prompts = [chat_prompt(self.tokenizer, p.prompt) for p in problems for _ in range(config.samples)]
        completions = self._sample(prompts, step)
        rewards = self._rewards(problems, completions)
        advantages = group_advantages(rewards, config.advantage)
        metrics = rollout_metrics(completions, rewards)
        metrics["kl"] = self._kl(prompts[:: config.samples], completions[:: config.samples])
        keep = torch.ones(len(prompts), dtype=torch.bool) if config.kl else advantages.flatten() != 0
        rows = [i for i in range(len(prompts)) if keep[i]]
        batch = policy_rows(
            [prompts[i] for i in rows],
            [completions[i] for i in rows],
            advantages.flatten()[keep],
            config,
            self.tokenizer.pad_id,
            len(prompts),
        )
        if config.kl and rows:
            batch = self._with_reference(batch)
        if self.rehearsed:
            mine = self.world.share(config.rehearsal_rows)
            picked = rng.choice(len(self.rehearsed), config.rehearsal_rows)[mine]
            conversations = [self.rehearsed[i] for i in picked]
            batch = with_rehearsal(batch, conversations, config.rehearsal, self.tokenizer.pad_id)
        return dataclasses.replace(batch, metrics=metrics)

    def _sample(self, prompts: list[list[int]], step: int) -> list[Completion]:
        first = step_seed(self.config.seed, step, self.world.rank) % 2**53
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.half):
            return generate(
                self.model,
                prompts,
                max_new_tokens=self.config.max_new_tokens,
                temperature=1.0,
                stop_ids=[self.tokenizer.im_end_id],
                seed=[first + i for i in range(len(prompts))],
                tool=self.environment.tool,
                tokenizer=self.tokenizer,
                batch_size=512,
            )

    def _rewards(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> Tensor:
        """(P, G) rewards of the answers, G a problem."""
        g = self.config.samples
        return torch.tensor(
            [
                [
                    self.environment.reward(problem, completion_text(self.tokenizer, c), c.finished)
                    for c in completions[i * g : (i + 1) * g]
                ]
                for i, problem in enumerate(problems)
            ]
        )

    @torch.no_grad()
    def _kl(self, prompts: list[list[int]], completions: list[Completion]) -> float:
        """KL(policy ‖ SFT model) in nats a token, on one answer a problem: the mean of log π − log π_ref."""
        no_advantage = torch.zeros(len(prompts))
        batch = policy_rows(
            prompts, completions, no_advantage, self.config, self.tokenizer.pad_id, len(prompts)
        )
        batch = batch.to(self.world.device)
        reference = -float(self.reference(batch.inputs, batch.targets).sum())
        policy = sum(lp for c in completions for lp, s in zip(c.logprobs, c.sampled, strict=True) if s)
        return (policy - reference) / max(1, batch.count)

    def _with_reference(self, batch: Batch) -> Batch:
        with torch.no_grad():
            logprobs = -self.reference(
                batch.inputs.to(self.world.device), batch.targets.to(self.world.device)
            )
        return dataclasses.replace(batch, extra=batch.extra | {"reference": logprobs.cpu()})


def training_pool(environment: Environment, config: RlConfig) -> list[Problem]:
    """config.pool training problems, or as many as the generator has."""
    wanted = config.pool
    while True:
        try:
            return environment.generate(config.seed, wanted, "train")
        except ValueError:
            if wanted <= config.prompts:
                raise
            wanted //= 2


def read_rehearsal(sft_model: Path, tokenizer: Tokenizer, max_tokens: int) -> list[Row]:
    """Rendered training conversations of the SFT model that are no sums; none for a model without conversations."""
    import pyarrow.parquet as pq

    path = Path(sft_model) / "conversations" / "train.parquet"
    if not path.is_file():
        return []
    table = pq.read_table(path, columns=["kind", "messages"]).to_pylist()
    rows = [render(row["messages"], tokenizer) for row in table if row["kind"] not in REWARDED_KINDS]
    return [(ids, mask) for ids, mask in rows if len(ids) <= max_tokens]
