"""Reinforcement learning with verifiable rewards: GRPO on problems whose answers a program checks.

    python -m model.rl --config FILE.json

input: sft_model (a model folder that chats). Writes a model folder, curve.jsonl, summary.json.

A step: `prompts` training problems are answered `samples` times each at temperature 1; a right answer that stops by
itself is worth 1, anything else 0 (rollouts.py). Then there is one gradient step by GRPO (grpo.py).

What can be learnt: SFT has shown two ways to do a sum, step by step without a tool and by calculator
(evals/probes.py), the first more often. The model is bad at the first and good at the second, and only
the reward teaches it so (as in ToRL, arXiv 2503.23383). So most of the gain is a better choice, not better arithmetic.

Notable:
- the stop token is an action like any other: it is scored and rewarded, and an answer that never stops earns nothing;
- tokens that a tool wrote are read but never learnt;
- held-out problems are other problems, by a hash of their text, never seen in SFT or RL.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.code import code_hash
from core.files import write_json
from core.hashing import folder_sha256
from core.settings import read_settings
from model.attempts import attempt
from model.environments import Environment, Problem
from model.grpo import grpo_loss
from model.hub.load import load_pretrained
from model.hub.save import save_pretrained
from model.job import Job, run_main
from model.network.transformer import Transformer
from model.rollouts import Rollouts, read_rehearsal
from model.tokenizer import Tokenizer
from model.training.rl_config import RlConfig
from model.training.trainer import TrainResult, train, write_curve
from model.training.world import destroy_distributed, init_distributed


def rl(job: Job) -> None:
    """Sample, reward, update, evaluate, export: job.out, complete or not at all."""
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
        grpo_loss(config.kl),
        work=job.work,
        log=job.log,
        world=world,
        identity={
            "parent": folder_sha256(parent),
            "code": code_hash("model.rl"),
        },
        evaluate=lambda _: measure(model, tokenizer, environment, heldout, config),
        what="reinforcement",
    )
    export(model, result, job, parent, config, before)
    destroy_distributed()


def measure(
    model: Transformer,
    tokenizer: Tokenizer,
    environment: Environment,
    problems: Sequence[Problem],
    config: RlConfig,
) -> dict[str, float]:
    """Greedy accuracy on held-out problems."""
    attempts = attempt(model, tokenizer, environment, problems, max_new_tokens=config.max_new_tokens)
    return {"heldout_accuracy": sum(a.reward for a in attempts) / len(attempts)}


def export(
    model: Transformer,
    result: TrainResult,
    job: Job,
    parent: Path,
    config: RlConfig,
    before: dict[str, float],
) -> None:
    """Write the finished folder: weights, tokenizer, curve, summary."""
    state, last = result.state, result.curve[-1]
    summary: dict[str, Any] = {
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
        save_pretrained(model, parent, partial, model_card(summary), chat=True)
        write_curve(partial / "curve.jsonl", result.curve)
        write_json(partial / "summary.json", summary)
        job.publish()
        job.log.message(
            f"{job.out}: {100 * summary['heldout_accuracy']:.1f} % of held-out problems right, "
            f"{100 * summary['heldout_accuracy_before']:.1f} % before."
        )
    result.engine.world.barrier()
    job.log.result(**summary)


def model_card(summary: dict[str, Any]) -> str:
    """The model card."""
    return (
        f"# Assistant after reinforcement learning\n\nAn assistant trained further by Stemma with GRPO on "
        f"`{summary['environment']}` problems of reasoning-gym: {summary['answers']:,} answers of its own, each "
        f"checked by a program. On {summary['heldout_problems']} problems that occurred in no training it went from "
        f"{100 * summary['heldout_accuracy_before']:.1f} to {100 * summary['heldout_accuracy']:.1f} % (greedy). "
        "Outside such sums expect no more than of the model that it was made from.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """The command `python -m model.rl`; returns its exit code."""
    return run_main("model.rl", rl, argv)


if __name__ == "__main__":
    sys.exit(main())
