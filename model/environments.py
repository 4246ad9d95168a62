"""Problems whose answers a program can check: the basis of reinforcement learning with verifiable rewards.

Generators and verifiers are reasoning-gym's (Stojanovski et al., arXiv 2505.24760); this file adds what they
lack: a split of the *problems* (not of the random seeds) into training and held-out ones by a hash of the problem
itself, so that a held-out problem cannot occur in SFT or RL whatever the seeds; prompts short enough for small
models; and worked solutions for the first supervised examples. No model is run here: attempts.py does that.

Notable: a completion that never stops, or that does not end with its answer, gets a reward of 0: the stop token is
rewarded too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import ConfigError
from model.tools import calculator

HELDOUT_PERCENT = 20
_FINAL_ANSWER = re.compile(r".*\banswer is\s+(\S(?:.*\S)?)\s*$", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One checkable question. `key` is what makes it the same problem; the split hashes it."""

    key: str
    prompt: str
    answer: str
    solution: str  # worked out step by step, without a tool
    call: str  # by calculator
    entry: Mapping[str, Any] = field(repr=False, hash=False, compare=False, default_factory=dict)


# Two or three one-digit terms: 4,200 different problems, and intermediate results from −9 to 27.
CHAIN_SUM = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}


@dataclass(frozen=True)
class Environment:
    """A family of problems from one reasoning-gym generator.

    dataset: its name there (`chain_sum`, `basic_arithmetic`, `spell_backward`, `letter_counting`, …).
    options: the generator's own settings, e.g. {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}.
    Every generator works; those with a `metadata.expression` get a shorter prompt, and the additive ones a
    solution worked out step by step and another by calculator. `calculator`: whether a call of it is answered; the
    prompt does not say so: the model chooses whether to call it.
    """

    dataset: str = "chain_sum"
    options: Mapping[str, Any] = field(default_factory=lambda: dict(CHAIN_SUM))
    calculator: bool = True
    heldout_percent: int = HELDOUT_PERCENT

    def generate(self, seed: int, n: int, split: str = "train") -> list[Problem]:
        """`n` different problems of `split` ("train" or "heldout"); the same for the same seed.

        Raises ConfigError where the generator has fewer than `n` different ones.
        """
        if split not in ("train", "heldout"):
            raise ValueError(f"There is no split {split!r} of problems: give 'train' or 'heldout'.")
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
            raise ConfigError(
                f"{self.dataset} with {dict(self.options)} has only {len(problems)} different {split} problems "
                f"where {n} are asked for: widen its options or ask for fewer."
            )
        return list(problems.values())

    def split_of(self, key: str) -> str:
        """The split of a problem, "train" or "heldout": a function of its text alone, the same on every machine."""
        digest = hashlib.blake2b(f"{self.dataset}\0{key}".encode(), digest_size=8).digest()
        return "heldout" if int.from_bytes(digest, "big") % 100 < self.heldout_percent else "train"

    def reward(self, problem: Problem, completion: str, finished: bool) -> float:
        """1.0 where the completion stopped by itself and its final answer is right, else 0.0.

        reasoning-gym's verifier decides what is right ("+7" and "07" are 7); its partial credit is not used:
        it rewards text that merely contains the answer.
        """
        answer = final_answer(completion) if finished else None
        if answer is None:
            return 0.0
        return float(self._generator(0, 1).score_answer(answer, dict(problem.entry)) >= 1.0)

    @property
    def tool(self) -> Callable[[str], str] | None:
        """The tool that an answer may call, or None."""
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
    """The text between the last "answer is" and the end, without the full stop; None where there is none."""
    match = _FINAL_ANSWER.match(completion)
    return match.group(1).rstrip(".").strip() or None if match else None


def worked_solution(expression: str, answer: str) -> str:
    """Left-to-right steps for a chain of + and −: "7 + 8 = 15. 15 - 3 = 12. The answer is 12."

    For anything else (products, brackets) only the last sentence is given.
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
