"""Reinforcement learning with verifiable rewards: GRPO on problems whose answers a program checks.

    python -m model.rl --config FILE.json

input: sft_model (a model folder that chats). Writes a model folder, curve.jsonl, summary.json.

A step: `prompts` training problems are answered `samples` times each at temperature 1; a right answer that stops by
itself is worth 1, anything else 0; an answer's advantage is its reward less the mean of its problem's answers
(GRPO, arXiv 2402.03300; without division by the group's standard deviation and by an answer's own length, which
bias it towards easy problems and long wrong answers: Dr. GRPO, arXiv 2503.20783). Then one gradient step on
−advantage · log probability of every token that the model itself wrote.

What there is to find out: SFT has shown two ways to do a sum, in the head and by calculator (evals/probes.py), the
first more often. The model is bad at the first and good at the second; no one tells it, the reward does (as in
ToRL, arXiv 2503.23383). So most of the gain is a better choice of means, and not a better head for figures.

Notable:
- strictly on-policy: the step's answers come from the very weights that it updates, sampled at temperature 1 from
  the full softmax, the distribution that scores them. So no importance ratio and nothing to clip;
- the stop token is an action like any other: it is scored and paid for, and who never stops earns nothing;
- tokens that a tool wrote are read but never learnt;
- a model that only ever sees sums forgets the rest, so every step also rehearses conversations of SFT, of other
  kinds than the rewarded one, by their plain likelihood (PPO-ptx of InstructGPT, arXiv 2203.02155);
- problems all of whose answers earn the same teach nothing and are left out of the gradient (DAPO, 2503.14476);
- held-out problems are other problems, by a hash of their text, never seen in SFT or RL.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import ConfigError
from core.files import write_json
from core.settings import read_settings
from model.attempts import attempt, chat_prompt, completion_text
from model.chat import render
from model.environments import CHAIN_SUM, Environment, Problem
from model.generation import generate
from model.generation.generate import Completion
from model.hashes import folder_hash, program_hash
from model.hub.load import load_pretrained
from model.hub.save import save_pretrained
from model.job import Job, run_main
from model.network.config import IGNORE
from model.tokenizer import Tokenizer
from model.training.train_config import TrainConfig
from model.training.trainer import Batch, TrainResult, step_seed, train, write_curve
from model.training.world import World, destroy_distributed, init_distributed

ADVANTAGES = ("dr_grpo", "grpo")
REWARDED_KINDS = ("arithmetic", "calculator")  # of conversations (evals/conversations.py): not rehearsed


@dataclass(frozen=True)
class RlConfig(TrainConfig):
    """The section `rl_model` of params.yaml."""

    steps: int = 25
    prompts: int = 32  # problems a step, over all processes
    samples: int = 8  # answers to each
    micro_batches: int = 4  # twice as fast on CPU as 1: the logits of a part stay in the cache
    max_new_tokens: int = 48
    lr: float = 3e-4  # at 0.8M parameters 1e-3 and more lose what SFT taught
    schedule: str = "linear"
    final_lr: float = 0.1
    warmup: float = 0.1
    weight_decay: float = 0.0
    beta2: float = 0.99
    advantage: str = "dr_grpo"  # or grpo: divided by the group's standard deviation and the answer's length
    rehearsal: float = 0.1  # weight of the likelihood of SFT's conversations on other matters; 0: none
    rehearsal_rows: int = 32  # such conversations a step, over all processes
    kl: float = 0.0  # weight of the penalty for leaving the SFT model; 0: it is only measured
    dataset: str = "chain_sum"  # a generator of reasoning-gym
    options: Mapping[str, Any] = field(default_factory=lambda: dict(CHAIN_SUM))
    calculator: bool = True  # whether its calls are answered
    pool: int = 3000  # different training problems; fewer where the generator has no more
    eval_problems: int = 200  # held-out problems, answered greedily
    eval_every: int = 5
    log_every: int = 1
    checkpoint_every: int = 20

    def __post_init__(self):
        super().__post_init__()
        if self.advantage not in ADVANTAGES:
            raise ConfigError(f"rl_model.advantage: {self.advantage!r} is not one of {ADVANTAGES}.")
        if self.samples < 2 or self.prompts < 1:
            raise ConfigError("rl_model: a group needs 2 samples or more, and a step 1 prompt or more.")
        if self.zero_stage == 3:
            raise ConfigError(
                "rl_model.zero_stage: 3 takes the weights apart, and sampling needs them whole. Use 0 to 2."
            )

    @property
    def environment(self) -> Environment:
        return Environment(self.dataset, self.options, self.calculator)


def rl(job: Job) -> None:
    """Sample, reward, update, measure, export: job.out, whole or not at all."""
    config = read_settings(RlConfig, {"seed": job.seed} | job.params, "rl_model")
    parent = job.input("sft_model")
    world = init_distributed(config)
    model, tokenizer = load_pretrained(parent, device=world.device)
    reference, _ = load_pretrained(parent, device=world.device)
    environment = config.environment
    heldout = environment.generate(config.seed, config.eval_problems, "heldout")
    rehearsed = read_rehearsal(parent, tokenizer, model.config.max_seq_len) if config.rehearsal else []
    rollouts = Rollouts(model, reference, tokenizer, environment, config, world, rehearsed)
    before = measure(model, tokenizer, environment, heldout, config)
    job.log.log(0, **before)
    job.log.message(
        f"RL: {config.steps} steps of {config.prompts} problems × {config.samples} answers, from "
        f"{len(rollouts.problems):,} training problems of {config.dataset}; of {len(heldout)} held-out ones "
        f"{100 * before['heldout_accuracy']:.1f} % are right before."
    )
    result = train(
        model,
        config,
        rollouts.batch,
        policy_loss(config.kl),
        work=job.work,
        log=job.log,
        world=world,
        identity={
            "parent": folder_hash(parent),
            "code": program_hash(__file__),
        },
        evaluate=lambda _: measure(model, tokenizer, environment, heldout, config),
        what="reinforcement",
    )
    export(result, job, parent, config, before)
    destroy_distributed()


class Rollouts:
    """Makes the batch of a step: a pure function of the seed, the step and the weights as they are."""

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module,
        tokenizer: Tokenizer,
        environment: Environment,
        config: RlConfig,
        world: World,
        rehearsed: Sequence[tuple[list[int], list[int]]] = (),
    ):
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
            picked = rng.choice(len(self.rehearsed), config.rehearsal_rows)[
                self.world.share(config.rehearsal_rows)
            ]
            batch = with_rehearsal(
                batch, [self.rehearsed[i] for i in picked], config.rehearsal, self.tokenizer.pad_id
            )
        return dataclasses.replace(batch, metrics=metrics)

    def _sample(self, prompts: list[list[int]], step: int) -> list[Completion]:
        first = step_seed(self.config.seed, step, self.world.rank) % 2**53
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.half):
            return generate.generate(
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
        theirs = -float(self.reference(batch.inputs, batch.targets).sum())
        ours = sum(lp for c in completions for lp, s in zip(c.logprobs, c.sampled, strict=True) if s)
        return (ours - theirs) / max(1, batch.count)

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
    divided by their count (which is the trainer's doing), is the objective: for dr_grpo Σ advantage · nll over
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


def read_rehearsal(
    sft_model: Path, tokenizer: Tokenizer, max_tokens: int
) -> list[tuple[list[int], list[int]]]:
    """Rendered training conversations of the SFT model that are no sums: (ids, mask). None for a model without."""
    import pyarrow.parquet as pq

    path = Path(sft_model) / "conversations" / "train.parquet"
    if not path.is_file():
        return []
    table = pq.read_table(path, columns=["kind", "messages"]).to_pylist()
    rows = [render(row["messages"], tokenizer) for row in table if row["kind"] not in REWARDED_KINDS]
    return [(ids, mask) for ids, mask in rows if len(ids) <= max_tokens]


def with_rehearsal(
    batch: Batch, rows: Sequence[tuple[list[int], list[int]]], weight: float, pad_id: int
) -> Batch:
    """The batch with conversations below it whose assistant's tokens carry `weight` times their mean nll."""
    width = max(batch.inputs.shape[1], max(len(ids) for ids, _ in rows) - 1)
    inputs = torch.full((len(rows), width), pad_id)
    targets = torch.full_like(inputs, IGNORE)
    for i, (ids, mask) in enumerate(rows):
        inputs[i, : len(ids) - 1] = torch.tensor(ids[:-1])
        learn = torch.tensor(mask[1:], dtype=torch.bool)
        targets[i, : len(ids) - 1][learn] = torch.tensor(ids[1:])[learn]
    learnt = targets != IGNORE
    more = int(learnt.sum())
    count = batch.count + more
    # The trainer will divide by the whole count.
    policy = batch.extra["weight"] * (count / max(1, batch.count))
    rehearsal = learnt * (weight * count / max(1, more))
    extra = {
        name: torch.cat(
            [_wide(old, width, 0.0), rehearsal if name == "weight" else torch.zeros(inputs.shape)]
        )
        for name, old in (batch.extra | {"weight": policy}).items()
    }
    return Batch(
        torch.cat([_wide(batch.inputs, width, pad_id), inputs]),
        torch.cat([_wide(batch.targets, width, IGNORE), targets]),
        extra,
    )


def _wide(rows: Tensor, width: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=fill)


def policy_loss(kl: float = 0.0):
    """loss(model, batch): Σ weight · −log probability, plus kl · Schulman's unbiased, positive k3 estimator of
    KL(policy ‖ reference) a token, e^d − d − 1 with d = reference − policy (GRPO's equation 4)."""

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
    """What a step's answers look like. entropy: nats a token, estimated as the mean −log probability of what was
    sampled, which is unbiased because the sampling is on-policy."""
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


def measure(
    model: nn.Module,
    tokenizer: Tokenizer,
    environment: Environment,
    problems: Sequence[Problem],
    config: RlConfig,
) -> dict[str, float]:
    """Greedy accuracy on held-out problems."""
    attempts = attempt(model, tokenizer, environment, problems, max_new_tokens=config.max_new_tokens)
    return {"heldout_accuracy": sum(a.reward for a in attempts) / len(attempts)}


def export(result: TrainResult, job: Job, parent, config: RlConfig, before: dict[str, float]) -> None:
    """The finished folder: weights, tokenizer, curve, summary."""
    state, last = result.state, result.curve[-1]
    summary = {
        "environment": config.dataset,
        "options": dict(config.options),
        "calculator": config.calculator,
        "heldout_problems": config.eval_problems,
        "heldout_accuracy_before": round(before["heldout_accuracy"], 6),
        "heldout_accuracy": round(last["heldout_accuracy"], 6),
        "reward": round(last["reward"], 6),
        "entropy": round(last["entropy"], 6),
        "completion_tokens": round(last["completion_tokens"], 6),
        "steps": state.step,
        "answers": state.step * config.prompts * config.samples,
        "empty_steps": state.empty_steps,
        "not_finite_steps": state.not_finite_steps,
    }
    if result.engine.world.rank == 0:
        partial = job.fresh_partial()
        save_pretrained(result.engine.module, parent, partial, card(summary), chat=True)
        write_curve(partial / "curve.jsonl", result.curve)
        write_json(partial / "summary.json", summary)
        job.publish()
        job.log.message(
            f"{job.out}: {100 * summary['heldout_accuracy']:.1f} % of held-out problems right, "
            f"{100 * summary['heldout_accuracy_before']:.1f} % before."
        )
    result.engine.world.barrier()
    job.log.result(**summary)


def card(summary: dict[str, Any]) -> str:
    """The model card."""
    return (
        f"# Assistant after reinforcement learning\n\nAn assistant trained further by Stemma with GRPO on "
        f"`{summary['environment']}` problems of reasoning-gym: {summary['answers']:,} answers of its own, each "
        f"checked by a program. On {summary['heldout_problems']} problems that occurred in no training it went from "
        f"{100 * summary['heldout_accuracy_before']:.1f} to {100 * summary['heldout_accuracy']:.1f} % (greedy). "
        "Outside such sums expect no more than of the model that it was made from.\n"
    )


def main(argv: list[str] | None = None) -> int:
    return run_main("model.rl", rl, argv)


if __name__ == "__main__":
    sys.exit(main())
