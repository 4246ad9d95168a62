"""Problems whose answers a program can check: the ground of reinforcement learning with verifiable rewards.

Generators and verifiers are reasoning-gym's (Stojanovski et al., arXiv 2505.24760); this file adds what they
lack: a split of the *problems* (not of the random seeds) into training and held-out ones by a hash of the problem
itself, so that a held-out problem cannot occur in SFT or RL whatever the seeds; prompts short enough for small
models; and worked solutions for the first supervised examples.

Notable: a completion that never stops, or that does not end with its answer, earns nothing: the reward pays for
the stop token too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HELDOUT_PERCENT = 20
_FINAL_ANSWER = re.compile(r".*\banswer is\s+(\S(?:.*\S)?)\s*$", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One checkable question. `key` is what makes it the same problem; the split hashes it."""

    key: str
    prompt: str
    answer: str
    solution: str  # worked in the head, step by step
    call: str  # or by calculator
    entry: Mapping[str, Any] = field(repr=False, hash=False, compare=False, default_factory=dict)


# Two or three one-digit terms: 4,200 different problems, and intermediate results from −9 to 27.
CHAIN_SUM = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}


@dataclass(frozen=True)
class Environment:
    """A family of problems from one reasoning-gym generator.

    dataset: its name there (`chain_sum`, `basic_arithmetic`, `spell_backward`, `letter_counting`, …).
    options: the generator's own settings, e.g. {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}.
    Every generator works; those with a `metadata.expression` get a shorter prompt, and the additive ones a
    solution worked step by step and another by calculator. `calculator`: whether a call of it is answered; the
    prompt does not say so, and which way to take is the model's choice.
    """

    dataset: str = "chain_sum"
    options: Mapping[str, Any] = field(default_factory=lambda: dict(CHAIN_SUM))
    calculator: bool = True
    heldout_percent: int = HELDOUT_PERCENT

    def generate(self, seed: int, n: int, split: str = "train") -> list[Problem]:
        """`n` different problems of `split` ("train" or "heldout"); the same for the same seed.

        Raises ValueError where the generator cannot make `n` different ones (its space is too small).
        """
        if split not in ("train", "heldout"):
            raise ValueError(f"There is no split {split!r} of problems: say 'train' or 'heldout'.")
        problems: dict[str, Problem] = {}
        drawn, block = 0, max(64, 2 * n)
        while len(problems) < n and drawn < 200 * n + 20_000:
            for entry in self._entries(seed, drawn, block):
                problem = self._problem(entry)
                if self.split_of(problem.key) == split and problem.key not in problems:
                    problems[problem.key] = problem
                    if len(problems) == n:
                        break
            drawn += block
        if len(problems) < n:
            raise ValueError(
                f"{self.dataset} with {dict(self.options)} has only {len(problems)} different {split} problems "
                f"where {n} are asked for: widen its options or ask for fewer."
            )
        return list(problems.values())

    def split_of(self, key: str) -> str:
        """The split of a problem: a pure function of its text, the same in every run and on every machine."""
        digest = hashlib.blake2b(f"{self.dataset}\0{key}".encode(), digest_size=8).digest()
        return "heldout" if int.from_bytes(digest, "big") % 100 < self.heldout_percent else "train"

    def reward(self, problem: Problem, completion: str, finished: bool) -> float:
        """1.0 where the completion stopped by itself and its final answer is right, else 0.0.

        reasoning-gym's verifier decides what is right ("+7" and "07" are 7); its partial credit is not used:
        it pays for text that merely contains the answer.
        """
        answer = final_answer(completion) if finished else None
        if answer is None:
            return 0.0
        return float(self._generator(0, 1).score_answer(answer, dict(problem.entry)) >= 1.0)

    @property
    def tool(self) -> Callable[[str], str] | None:
        """The tool that an answer may call, or None."""
        from model.tools import calculator

        return calculator if self.calculator else None

    def _entries(self, seed: int, start: int, count: int) -> list[dict[str, Any]]:
        # reasoning-gym seeds item i with (seed + i): neighbouring seeds share items, so spread them by a hash.
        spread = int.from_bytes(hashlib.blake2b(f"{seed}".encode(), digest_size=6).digest(), "big")
        generator = self._generator(spread + start, count)
        return [generator[i] for i in range(count)]

    def _generator(self, seed: int, size: int) -> Any:
        import reasoning_gym

        return reasoning_gym.create_dataset(self.dataset, seed=seed, size=size, **self.options)

    def _problem(self, entry: dict[str, Any]) -> Problem:
        expression = entry["metadata"].get("expression")
        answer = str(entry["answer"])
        if expression is None:
            solution = f"The answer is {answer}."
            return Problem(entry["question"], entry["question"], answer, solution, solution, entry)
        called = f"<tool_call>{expression}</tool_call><tool_response>{answer}</tool_response>The answer is {answer}."
        worked = worked_solution(expression, answer)
        return Problem(expression, f"What is {expression}?", answer, worked, called, entry)


def final_answer(completion: str) -> str | None:
    """What stands between the last "answer is" and the end, without the full stop; None where there is none."""
    match = _FINAL_ANSWER.match(completion)
    return match.group(1).rstrip(".").strip() or None if match else None


def worked_solution(expression: str, answer: str) -> str:
    """Left-to-right steps for a chain of + and −: "7 + 8 = 15. 15 - 3 = 12. The answer is 12."

    Anything else (products, brackets) gets only its last sentence.
    """
    terms = expression.split(" ")
    steps = []
    if len(terms) >= 3 and len(terms) % 2 == 1 and set(terms[1::2]) <= {"+", "-"}:
        total = int(terms[0])
        for operator, term in zip(terms[1::2], terms[2::2], strict=True):
            result = total + int(term) if operator == "+" else total - int(term)
            steps.append(f"{total} {operator} {term} = {result}.")
            total = result
        if str(total) != answer:
            raise ValueError(f"{expression} is worked to {total}, but its answer is given as {answer}.")
    return " ".join([*steps, f"The answer is {answer}."])


@dataclass(frozen=True)
class Attempt:
    """What a model made of a problem: its text, whether it stopped by itself, and its reward."""

    problem: Problem
    text: str
    finished: bool
    reward: float
    tokens: int


def attempt(
    model: Any,
    tokenizer: Any,
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


def chat_prompt(tokenizer: Any, question: str) -> list[int]:
    """The question as a user's turn, with the assistant's turn opened."""
    from model.chat import render

    return render([{"role": "user", "content": question}], tokenizer, add_generation_prompt=True)[0]


def plain_prompt(tokenizer: Any, question: str) -> list[int]:
    """The question for a model that knows no turns, as the start of a document."""
    return [tokenizer.eos_id, *tokenizer.encode(f"Question: {question}\nAnswer:")]


def completion_text(tokenizer: Any, completion: Any) -> str:
    """The completion without the token that ended it."""
    return tokenizer.decode(completion.ids[:-1] if completion.finished else completion.ids).strip()
