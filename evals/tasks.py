"""What a model is asked, and how its answers are graded: sums with a verifier, facts with a match rule.

Definitions (known and unknown: what the probe found, so properties of the model and not of the world):
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
from typing import TYPE_CHECKING

from evals.conversations import QUESTIONS, question
from evals.facts import normalize, states
from evals.probed_facts import HELDOUT, INVENTED, KNOWN, TRAIN, UNKNOWN, Probe
from evals.statistics import Proportion, proportion
from model.attempts import Attempt, attempt, chat_prompt, completion_text, plain_prompt
from model.environments import Environment

if TYPE_CHECKING:
    from model.network.transformer import Transformer
    from model.tokenizer import Tokenizer

ANSWER_TOKENS = 40  # at most; a definition has ten words
REFUSALS = ("i don t know", "i do not know", "i m not sure")  # as facts.normalize writes them


@dataclass(frozen=True)
class Answer:
    """A question about a subject, the model's answer, and its grade: right, declined, or neither."""

    probe: Probe
    question: str
    text: str
    right: bool
    declined: bool


def declines(text: str) -> bool:
    """Whether an answer says that it does not know."""
    answer = f" {normalize(text)} "
    return any(f" {phrase} " in answer for phrase in REFUSALS)


def ask_about(
    model: Transformer, tokenizer: Tokenizer, subjects: Sequence[Probe], chat: bool, phrasing: int | None = 0
) -> list[Answer]:
    """One greedy answer a subject; `phrasing` as in conversations.question."""
    questions = [question(p.subject, p.verb, phrasing) for p in subjects]
    texts = respond(model, tokenizer, questions, chat)
    return [
        Answer(probe, asked, text, bool(probe.definiens) and states(text, probe.definiens), declines(text))
        for probe, asked, text in zip(subjects, questions, texts, strict=True)
    ]


def respond(model: Transformer, tokenizer: Tokenizer, questions: Sequence[str], chat: bool) -> list[str]:
    """Greedy answers. A base model (`chat` False) is shown "Question: … Answer:" and answers up to a line's end."""
    from model.generation.generate import generate

    if chat:
        prompt, stops = chat_prompt, [tokenizer.im_end_id]
    else:
        prompt, stops = plain_prompt, [tokenizer.eos_id, *tokenizer.encode("\n")]
    completions = generate(
        model,
        [prompt(tokenizer, asked) for asked in questions],
        max_new_tokens=ANSWER_TOKENS,
        stop_ids=stops,
        tokenizer=tokenizer,
    )
    return [completion_text(tokenizer, c) for c in completions]


def measure_knowledge(
    model: Transformer, tokenizer: Tokenizer, probes: Sequence[Probe], limit: int, chat: bool
) -> dict[str, Proportion]:
    """The rates that the module's docstring defines, of at most `limit` subjects of each kind."""

    def ask(split: str, status: str, phrasing: int | None = 0) -> list[Answer]:
        subjects = [p for p in probes if p.split == split and p.status == status]
        return ask_about(model, tokenizer, subjects[:limit], chat, phrasing)

    known, unseen = ask(TRAIN, KNOWN, None), ask(HELDOUT, KNOWN)
    unknown, invented = ask(HELDOUT, UNKNOWN), ask(HELDOUT, INVENTED)
    unanswerable = unknown + invented
    return {
        "recall": proportion([a.right for a in known]),
        "recall_unseen": proportion([a.right for a in unseen]),
        "over_refusal": proportion([a.declined and not a.right for a in known]),
        "refusal": proportion([a.declined for a in unanswerable]),
        "hallucination": proportion([not a.declined and not a.right for a in unanswerable]),
        "hallucination_pages": proportion([not a.declined and not a.right for a in unknown]),
        "hallucination_invented": proportion([not a.declined for a in invented]),
    }


def solve_problems(
    model: Transformer,
    tokenizer: Tokenizer,
    environment: Environment,
    n: int,
    seed: int,
    max_new_tokens: int,
    chat: bool,
) -> list[Attempt]:
    """`n` different held-out problems, answered greedily once each."""
    problems = environment.generate(seed, n, HELDOUT)
    return attempt(model, tokenizer, environment, problems, max_new_tokens=max_new_tokens, chat=chat)


def calculator_use(attempts: Sequence[Attempt]) -> dict[str, Proportion]:
    """The share of answers that call the calculator, and the share of right ones with a call and without."""
    called = [a for a in attempts if "<tool_call>" in a.text]
    in_head = [a for a in attempts if "<tool_call>" not in a.text]
    return {
        "called": proportion(["<tool_call>" in a.text for a in attempts]),
        "right_called": proportion([a.reward == 1.0 for a in called]),
        "right_in_head": proportion([a.reward == 1.0 for a in in_head]),
    }


def questions_about(subjects: Sequence[Probe]) -> list[set[str]]:
    """For each subject every question that could be asked about it, to search for in training data."""
    phrasings = [None, *range(len(QUESTIONS))]
    return [{question(p.subject, p.verb, phrasing) for phrasing in phrasings} for p in subjects]
