"""What a model is asked, and how its answers are judged: sums with a verifier, facts with a match rule.

Definitions (known and unknown: what the probe found, so facts about the model and not about the world):
  recall          share of known facts, asked in a phrasing that no training conversation has, that it states right
                  (facts.states); the subjects are those that SFT asked about in other phrasings
  recall_unseen   the same for known facts that SFT never asked about in any phrasing: does it know what it knows?
  over_refusal    share of the facts of `recall` that it declines to answer
  refusal         share of unknown facts and invented names, none of them in training, that it declines to answer
  hallucination   share of these that it answers with something else than the fact
An answer declines where it says that it does not know (`declines`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evals import conversations as talk
from evals.facts import normal, states
from evals.probes import HELDOUT, INVENTED, KNOWN, TRAIN, UNKNOWN, Probe
from evals.statistics import Proportion, proportion
from model.attempts import Attempt, attempt, chat_prompt, completion_text, plain_prompt
from model.environments import Environment

ANSWER_TOKENS = 40  # a definition of ten words, and room to spare


@dataclass(frozen=True)
class Answer:
    """A question about a subject, the model's answer, and how it is judged: right, declined, or neither."""

    probe: Probe
    question: str
    text: str
    right: bool
    declined: bool


def declines(text: str) -> bool:
    """Whether an answer says that it does not know."""
    said = f" {normal(text)} "
    return any(f" {phrase} " in said for phrase in ("i don t know", "i do not know", "i m not sure"))


def ask_about(
    model: Any, tokenizer: Any, subjects: Sequence[Probe], chat: bool, phrasing: int = 0
) -> list[Answer]:
    """One greedy answer a subject; a base model is shown "Question: … Answer:"."""
    questions = [talk.question(p.subject, p.verb, phrasing) for p in subjects]
    texts = respond(model, tokenizer, questions, chat)
    return [
        Answer(probe, question, text, bool(probe.definiens) and states(text, probe.definiens), declines(text))
        for probe, question, text in zip(subjects, questions, texts, strict=True)
    ]


def respond(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    chat: bool,
    tool: Any = None,
    max_new_tokens: int = ANSWER_TOKENS,
) -> list[str]:
    """Greedy answers to questions; a base model answers up to the end of its line."""
    from model.generation.generate import generate

    prompt, stops = (chat_prompt, [tokenizer.im_end_id]) if chat else (plain_prompt, line_ends(tokenizer))
    completions = generate(
        model,
        [prompt(tokenizer, q) for q in questions],
        max_new_tokens=max_new_tokens,
        stop_ids=stops,
        tool=tool,
        tokenizer=tokenizer,
    )
    return [completion_text(tokenizer, c) for c in completions]


def line_ends(tokenizer: Any) -> list[int]:
    """The tokens at which a base model's answer ends."""
    return [tokenizer.eos_id, *tokenizer.encode("\n")]


def knowledge(
    model: Any, tokenizer: Any, judged: Sequence[Probe], limit: int, chat: bool
) -> dict[str, Proportion]:
    """The rates that the module's docstring defines, at most `limit` subjects of each kind."""

    def ask(split: str, status: str, phrasing: int | None = 0) -> list[Answer]:
        subjects = [p for p in judged if p.split == split and p.status == status]
        return ask_about(model, tokenizer, subjects[:limit], chat, phrasing)

    known, unseen = ask(TRAIN, KNOWN, None), ask(HELDOUT, KNOWN)
    unknown, invented = ask(HELDOUT, UNKNOWN), ask(HELDOUT, INVENTED)
    foreign = unknown + invented
    return {
        "recall": proportion([a.right for a in known]),
        "recall_unseen": proportion([a.right for a in unseen]),
        "over_refusal": proportion([a.declined and not a.right for a in known]),
        "refusal": proportion([a.declined for a in foreign]),
        "hallucination": proportion([not a.declined and not a.right for a in foreign]),
        "hallucination_pages": proportion([not a.declined and not a.right for a in unknown]),
        "hallucination_invented": proportion([not a.declined for a in invented]),
    }


def arithmetic(
    model: Any, tokenizer: Any, environment: Environment, n: int, seed: int, max_new_tokens: int, chat: bool
) -> list[Attempt]:
    """`n` different held-out problems, answered greedily once each."""
    problems = environment.generate(seed, n, HELDOUT)
    return attempt(model, tokenizer, environment, problems, max_new_tokens=max_new_tokens, chat=chat)


def ways(attempts: Sequence[Attempt]) -> dict[str, Proportion]:
    """How the sums were done: the share by calculator, and how many are right by either way."""
    called = [a for a in attempts if "<tool_call>" in a.text]
    in_head = [a for a in attempts if "<tool_call>" not in a.text]
    return {
        "called": proportion(["<tool_call>" in a.text for a in attempts]),
        "right_called": proportion([a.reward == 1.0 for a in called]),
        "right_in_head": proportion([a.reward == 1.0 for a in in_head]),
    }


def questions_about(subjects: Sequence[Probe]) -> list[set[str]]:
    """For each subject every question that could be asked about it, to look for in training data."""
    forms = [None, *range(len(talk.QUESTIONS))]
    return [{talk.question(p.subject, p.verb, form) for form in forms} for p in subjects]
