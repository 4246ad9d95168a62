"""All numbers of one model: bits per byte of held-out text, problems solved, facts known, and sample answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evals import baselines, tasks
from evals.probed_facts import HELDOUT, INVENTED, KNOWN, TRAIN, UNKNOWN, Probe
from evals.report_config import EvalConfig
from evals.statistics import Proportion, proportion
from model.attempts import Attempt
from model.environments import Environment

if TYPE_CHECKING:
    from model.network.transformer import Transformer
    from model.tokenizer import Tokenizer


@dataclass
class Measurements:
    """What was measured of one model. `solved` has one entry a held-out problem, the same problems for all models."""

    bits_per_byte: float
    solved: list[bool]
    finished: float  # share of answers to problems that stop by themselves
    calculator_use: dict[str, Proportion]  # as the task function of that name defines it
    knowledge: dict[str, Proportion]  # as tasks.measure_knowledge defines it
    attempts: list[Attempt] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)  # kind, question, answer

    @property
    def accuracy(self) -> Proportion:
        """The share of problems solved."""
        return proportion(self.solved)


def measure(
    folder: Path,
    chat: bool,
    environment: Environment,
    probes: Sequence[Probe],
    heldout: HeldoutText,
    config: EvalConfig,
    on_task: Callable[[], object],
) -> Measurements:
    """All numbers of the model in a folder; `on_task()` is called after each of four tasks."""
    from model.hub.load import load_pretrained

    model, tokenizer = load_pretrained(folder)
    bits_per_byte = heldout.bits_per_byte(model)
    on_task()
    attempts = tasks.solve_problems(
        model, tokenizer, environment, config.problems, config.seed, config.max_new_tokens, chat
    )
    on_task()
    knowledge = tasks.measure_knowledge(model, tokenizer, probes, config.facts, chat)
    on_task()
    samples = sample_answers(model, tokenizer, chat, attempts, probes)
    on_task()
    return Measurements(
        bits_per_byte,
        [a.reward == 1.0 for a in attempts],
        sum(a.finished for a in attempts) / len(attempts),
        tasks.calculator_use(attempts),
        knowledge,
        attempts,
        samples,
    )


def sample_answers(
    model: Transformer,
    tokenizer: Tokenizer,
    chat: bool,
    attempts: Sequence[Attempt],
    probes: Sequence[Probe],
) -> list[dict[str, str]]:
    """A few answers: about itself, known and unknown subjects, sums. The first of each, not the best."""
    questions = ["Who are you?", "What is your name?"]
    texts = tasks.respond(model, tokenizer, questions, chat)
    samples = [("identity", question, text) for question, text in zip(questions, texts, strict=True)]
    phrasings: list[tuple[str, str, int | None]] = [
        (KNOWN, TRAIN, None),
        (UNKNOWN, HELDOUT, 0),
        (INVENTED, HELDOUT, 0),
    ]
    for status, split, phrasing in phrasings:
        subjects = [p for p in probes if p.split == split and p.status == status][:3]
        answers = tasks.ask_about(model, tokenizer, subjects, chat, phrasing)
        samples += [(status, a.question, a.text) for a in answers]
    samples += [("sum", a.problem.prompt, a.text) for a in attempts[:5]]
    return [{"kind": kind, "question": question, "answer": text} for kind, question, text in samples]


class HeldoutText:
    """The base model's held-out documents as tokens, and the bits per byte of models and baselines on them."""

    def __init__(self, base_model: Path, config: EvalConfig):
        from model.data.config import HELD_OUT
        from model.data.loader import TokenData
        from model.tokenizer import load_tokenizer

        self.config = config
        self.tokenizer = load_tokenizer(base_model)
        self.data = TokenData(base_model / "tokens")
        self.documents: list[npt.NDArray[Any]] = []
        self.n_bytes = 0
        for number in self.data.documents(HELD_OUT):
            if self.n_bytes and self.n_bytes + self.data.n_bytes[number] > config.heldout_bytes:
                break
            self.documents.append(self.data.tokens(number))
            self.n_bytes += int(self.data.n_bytes[number])

    def bits_per_byte(self, model: Transformer) -> float:
        """The model's bits per byte, measured as in pretraining."""
        import torch

        from model.bits_per_byte import bits_per_byte

        with torch.no_grad():
            width = min(256, model.config.max_seq_len - 1)
            return bits_per_byte(model, self.documents, self.n_bytes, self.data.separator, width)

    def baselines(self) -> dict[str, float]:
        """Bits per byte of unigram tokens and of zstd with the training text as dictionary; empty without text."""
        if not self.n_bytes:
            return {}
        counts = np.zeros(self.tokenizer.vocab_size, dtype=np.int64)
        texts, n_bytes = [], 0
        for number in self.data.documents():
            tokens = self.data.tokens(number)
            counts += np.bincount(tokens, minlength=len(counts))
            if n_bytes < self.config.baseline_bytes:
                texts.append(self.tokenizer.decode(tokens[:-1].tolist()))
                n_bytes += int(self.data.n_bytes[number])
        ids = np.concatenate(self.documents).astype(np.int64)
        heldout = [self.tokenizer.decode(d[:-1].tolist()) for d in self.documents]
        return {
            "unigram": baselines.unigram_bits_per_byte(counts, ids, self.n_bytes),
            "zstd": baselines.zstd_bits_per_byte(texts, heldout),
        }
