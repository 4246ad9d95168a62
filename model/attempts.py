"""Running a model on problems: the prompts for them, and one greedy attempt at each with its reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.chat import render
from model.environments import Environment, Problem

if TYPE_CHECKING:
    from model.generation.batch import Completion
    from model.network.transformer import Transformer
    from model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Attempt:
    """A model's answer to a problem: its text, whether it stopped by itself, its reward, its number of tokens."""

    problem: Problem
    text: str
    finished: bool
    reward: float
    tokens: int


def attempt(
    model: Transformer,
    tokenizer: Tokenizer,
    environment: Environment,
    problems: Sequence[Problem],
    *,
    max_new_tokens: int,
    batch_size: int = 256,
    chat: bool = True,
) -> list[Attempt]:
    """Each problem answered once, greedily. A base model (`chat=False`) is shown the question and "Answer:"."""
    from model.generation.generate import generate

    prompts = [
        chat_prompt(tokenizer, p.prompt) if chat else plain_prompt(tokenizer, p.prompt) for p in problems
    ]
    stops = [tokenizer.im_end_id] if chat else [tokenizer.eos_id, *tokenizer.encode("\n")]
    completions = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_ids=stops,
        tool=environment.tool if chat else None,
        tokenizer=tokenizer,
        batch_size=batch_size,
    )
    attempts = []
    for problem, completion in zip(problems, completions, strict=True):
        text = completion_text(tokenizer, completion)
        reward = environment.reward(problem, text, completion.finished)
        attempts.append(Attempt(problem, text, completion.finished, reward, len(completion.ids)))
    return attempts


def chat_prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """Token ids of the question as a user's turn and of the beginning of the assistant's turn."""
    return render([{"role": "user", "content": question}], tokenizer, add_generation_prompt=True)[0]


def plain_prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """Token ids of the question as the start of a document, for a model that was not trained on turns."""
    return [tokenizer.eos_id, *tokenizer.encode(f"Question: {question}\nAnswer:")]


def completion_text(tokenizer: Tokenizer, completion: Completion) -> str:
    """The completion without the token that ended it."""
    return tokenizer.decode(completion.ids[:-1] if completion.finished else completion.ids).strip()
