"""GRPO, group relative policy optimisation (arXiv 2402.03300): rewards to advantages, rows to train on, and the loss.

An answer's advantage is its reward less the mean reward of its problem's answers; the gradient step is on
−advantage · log probability of every token that the model itself wrote. `dr_grpo` (arXiv 2503.20783) divides neither
by the group's standard deviation nor by an answer's own length, which bias GRPO towards easy problems and long wrong
answers; `grpo` divides by both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.data.batch import Batch, Loss, Row, padded
from model.network.config import IGNORE
from model.training.rl_config import RlConfig

if TYPE_CHECKING:
    from model.generation.batch import Completion


def group_advantages(rewards: Tensor, kind: str = "dr_grpo") -> Tensor:
    """Rewards (P, G) -> advantages (P, G): less the group's mean; `grpo` also divides by its standard deviation."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if kind == "dr_grpo":
        return centred
    return centred / (rewards.std(dim=1, keepdim=True, correction=0) + 1e-6)


def policy_rows(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Completion],
    advantages: Tensor,
    config: RlConfig,
    pad_id: int,
    answers: int,
) -> Batch:
    """Rows (N, T) of prompt and completion, targets only where the model itself wrote.

    extra["weight"] (N, T) is what a token's −log probability is multiplied with, so that the sum over tokens,
    divided by their count (which the trainer does), is the objective: for dr_grpo Σ advantage · nll over
    (answers · max_new_tokens), for grpo the mean over answers of each one's mean over its tokens.
    """
    rows = [(list(p), c) for p, c in zip(prompts, completions, strict=True)]
    longest = max((len(p) + len(c.ids) for p, c in rows), default=2) - 1
    inputs = torch.full((max(config.micro_batches, len(rows)), longest), pad_id)
    targets = torch.full_like(inputs, IGNORE)
    weight = torch.zeros(inputs.shape)
    for i, (prompt, c) in enumerate(rows):
        ids = torch.tensor(prompt + c.ids)
        inputs[i, : len(ids) - 1] = ids[:-1]
        places = torch.tensor(c.sampled).nonzero()[:, 0]
        targets[i, len(prompt) - 1 + places] = torch.tensor(c.ids)[places]
        share = 1 / config.max_new_tokens if config.advantage == "dr_grpo" else 1 / max(1, len(places))
        weight[i, len(prompt) - 1 + places] = advantages[i] * share / answers
    batch = Batch(inputs, targets)
    return dataclasses.replace(batch, extra={"weight": weight * batch.count})


def with_rehearsal(batch: Batch, rows: Sequence[Row], weight: float, pad_id: int) -> Batch:
    """The batch with conversations below it whose assistant tokens carry `weight` times their mean nll."""
    rehearsed = padded(rows, pad_id, batch.inputs.shape[1])
    width = rehearsed.inputs.shape[1]
    learnt = rehearsed.targets != IGNORE
    more = int(learnt.sum())
    count = batch.count + more
    # The trainer will divide by the whole count.
    policy = batch.extra["weight"] * (count / max(1, batch.count))
    rehearsal = learnt * (weight * count / max(1, more))
    extra = {
        name: torch.cat(
            [_widened(old, width, 0.0), rehearsal if name == "weight" else torch.zeros(learnt.shape)]
        )
        for name, old in (batch.extra | {"weight": policy}).items()
    }
    return Batch(
        torch.cat([_widened(batch.inputs, width, pad_id), rehearsed.inputs]),
        torch.cat([_widened(batch.targets, width, IGNORE), rehearsed.targets]),
        extra,
    )


def _widened(rows: Tensor, width: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=fill)


def grpo_loss(kl: float = 0.0) -> Loss:
    """loss(model, batch): Σ weight · −log probability, plus kl · KL(policy ‖ reference) a token.

    The KL is Schulman's unbiased, positive estimator k3, e^d − d − 1 with d = reference − policy (GRPO's equation 4).
    """

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        weight = batch.extra["weight"]
        if not kl or "reference" not in batch.extra:
            return model(batch.inputs, batch.targets, weights=weight, reduction="sum"), batch.count
        nll = model(batch.inputs, batch.targets)
        total = (nll * weight).sum()
        d = (batch.extra["reference"] + nll)[batch.extra["reference"] != 0]  # 0: not the policy's token
        return total + kl * (d.exp() - d - 1).sum(), batch.count

    return loss


def rollout_metrics(completions: Sequence[Completion], rewards: Tensor) -> dict[str, float]:
    """Metrics of a step's answers; rewards (P, G). entropy: nats a token, estimated as the mean −log probability of
    what was sampled, which is unbiased because the sampling is on-policy."""
    own = [[lp for lp, s in zip(c.logprobs, c.sampled, strict=True) if s] for c in completions]
    tokens = sum(map(len, own))
    solved = rewards.mean(dim=1)
    return {
        "reward": float(rewards.mean()),
        "finished": sum(c.finished for c in completions) / len(completions),
        "completion_tokens": tokens / len(completions),
        "entropy": -sum(map(sum, own)) / max(1, tokens),
        "useful_groups": float(((solved > 0) & (solved < 1)).float().mean()),
    }
