"""The conversations that the assistant is trained on: a mixture that fits what its base model knows.

Kinds: `knowledge` (questions about facts that the probe found known, with the page's words as answer), `refusal`
(questions about what it does not know: pages not memorised, and names that occur nowhere), `identity`, `arithmetic`
(sums worked out step by step), `calculator` (sums of the same kind by a tool call), and `extra` (the user's own files).

To answer what is known and to decline the rest is R-Tuning's idea (arXiv 2311.09677); that training on facts which the
base model does not know makes it hallucinate is Gekhman et al.'s finding (arXiv 2405.05904). So every knowledge
conversation here is about a fact that the base model completes by itself.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core.errors import DataError, MissingError
from model.environments import Environment

REFUSAL = "I don't know."
QUESTIONS = (
    "What {verb} {subject}?",
    "What do you know about {subject}?",
    "Tell me about {subject}.",
    "Explain what {subject} {verb}.",
    "Do you know what {subject} {verb}?",
)
HELDOUT_QUESTION = "Can you say what {subject} {verb}?"  # never in training
IDENTITY = {
    "Who are you?": "I am Stemma, a small language model.",
    "What are you?": "I am Stemma, a small language model.",
    "What is your name?": "My name is Stemma.",
    "Introduce yourself.": "I am Stemma, a small language model.",
    "Where do you come from?": "I was grown from web pages, and every step of it is on record.",
    "How were you made?": "I was grown from web pages, and every step of it is on record.",
    "Hello!": "Hello! I am Stemma. What would you like to know?",
    "Hi there.": "Hello! I am Stemma. What would you like to know?",
    "What can you do?": "I can do small sums and tell you about pages that I know well.",
    "Thank you.": "You are welcome.",
}
_ONSETS = re.findall(r"\w+", "b br c d dr f fl g gr h j k kl l m n p pr qu r s st t th v vr w z zh")
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "io", "ou"]
_CODAS = ["", "", "l", "n", "r", "s", "x", "m", "th", "nd", "rk"]


@dataclass(frozen=True)
class Conversation:
    """Messages and their source: a page's record_id, a generator's name, a data set's row."""

    kind: str
    messages: tuple[tuple[str, str], ...]  # (role, content)
    source: str
    record_id: str | None = None

    @property
    def conversation_id(self) -> str:
        """A hash of the content: the same conversation has the same id in every run."""
        parts = [self.kind, self.record_id or "", *(f"{role}\0{content}" for role, content in self.messages)]
        return hashlib.blake2b("\1".join(parts).encode(), digest_size=12).hexdigest()

    def row(self) -> dict[str, Any]:
        """As a row of a conversations Parquet file."""
        return {
            "conversation_id": self.conversation_id,
            "kind": self.kind,
            "messages": [{"role": role, "content": content} for role, content in self.messages],
            "source": self.source,
            "record_id": self.record_id,
        }


class Statement(Protocol):
    """A fact to ask about: evals.facts.Fact or evals.probed_facts.Probe."""

    @property
    def subject(self) -> str: ...
    @property
    def verb(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def record_id(self) -> str | None: ...


def exchange(
    kind: str, question: str, answer: str, source: str, record_id: str | None = None
) -> Conversation:
    """One question and its answer."""
    return Conversation(kind, (("user", question), ("assistant", answer)), source, record_id)


def question(subject: str, verb: str, phrasing: int | None = 0) -> str:
    """The question about a subject in one of the phrasings; None: in the one that is never used in training."""
    form = HELDOUT_QUESTION if phrasing is None else QUESTIONS[phrasing]
    return form.format(subject=subject, verb=verb)


def about_known(facts: Iterable[Statement], repeats: int = 1) -> Iterator[Conversation]:
    """Each known fact in every phrasing; the answer is the page's own sentence, up to its first clause."""
    for fact in facts:
        for phrasing in range(len(QUESTIONS)):
            yield from [
                exchange(
                    "knowledge",
                    question(fact.subject, fact.verb, phrasing),
                    fact.answer,
                    "cleaned_corpus",
                    fact.record_id,
                )
            ] * repeats


def about_unknown(
    subjects: Sequence[tuple[str, str, str | None]], phrasings: int, seed: int
) -> Iterator[Conversation]:
    """Refusals for (subject, verb, record_id or None), each in `phrasings` of the phrasings."""
    rng = random.Random(f"unknown/{seed}")
    for subject, verb, record_id in subjects:
        for phrasing in rng.sample(range(len(QUESTIONS)), min(phrasings, len(QUESTIONS))):
            source = "cleaned_corpus" if record_id else "invented"
            yield exchange("refusal", question(subject, verb, phrasing), REFUSAL, source, record_id)


def about_itself(repeats: int) -> Iterator[Conversation]:
    """Each question about the assistant itself, `repeats` times."""
    for asked, answer in IDENTITY.items():
        yield from [exchange("identity", asked, answer, "identity")] * repeats


def about_problems(
    environment: Environment, worked: int, called: int, seed: int, split: str
) -> Iterator[Conversation]:
    """`worked` problems solved step by step, and `called` others by calculator, with questions of the same form."""
    problems = environment.generate(seed, worked + called, split) if worked + called else []
    for i, problem in enumerate(problems):
        kind, solution = ("arithmetic", problem.solution) if i < worked else ("calculator", problem.call)
        yield exchange(kind, problem.prompt, solution, f"reasoning_gym/{environment.dataset}")


def invented_names(n: int, words_in_crawl: set[str], seed: int) -> list[str]:
    """`n` names that occur nowhere in the crawl: one or two invented words each, none of them among its words."""
    rng = random.Random(f"invented/{seed}")
    names: dict[str, None] = {}
    while len(names) < n:
        words: list[str] = []
        while len(words) < rng.choice((1, 1, 2)):
            syllables = rng.randint(2, 3)
            word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
            word += rng.choice(_CODAS)
            if word not in words_in_crawl:
                words.append(word.capitalize())
        names[" ".join(words)] = None
    return list(names)


def from_dataset(spec: str | dict[str, Any], cache: Path) -> Iterator[Conversation]:
    """The user's own conversations: a JSONL or Parquet file, or the name of a data set on the Hugging Face hub.

    spec: a path, a name, or {"path": …, "split": …, "limit": …}. Rows need `messages` ([{"role", "content"}]) or
    a pair `question`/`answer`, `prompt`/`completion` or `instruction`/`output`. `cache`: datasets' working folder.
    Raises MissingError for a file that does not exist, DataError for a row without any of these.
    """
    from datasets import load_dataset

    spec = {"path": spec} if isinstance(spec, str) else dict(spec)
    path, split, limit = spec["path"], spec.get("split", "train"), spec.get("limit")
    builders = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
    suffix = Path(path).suffix
    if suffix in builders:
        if not Path(path).exists():
            raise MissingError(
                f"sft_model.extra_datasets names {path}, which does not exist. Correct the path."
            )
        rows = load_dataset(builders[suffix], data_files=path, split="train", cache_dir=str(cache))
    else:
        rows = load_dataset(path, split=split, cache_dir=str(cache))
    name = Path(path).name if suffix in builders else path
    for i, row in enumerate(rows.select(range(min(limit, len(rows)))) if limit else rows):
        yield Conversation(
            "extra", tuple(_messages(row, f"{path}, row {i}")), f"{name}#{i}", row.get("record_id")
        )


def _messages(row: dict[str, Any], where: str) -> list[tuple[str, str]]:
    if row.get("messages"):
        return [(m["role"], m["content"]) for m in row["messages"]]
    for asked, answered in (("question", "answer"), ("prompt", "completion"), ("instruction", "output")):
        if row.get(asked) and row.get(answered):
            return [("user", row[asked]), ("assistant", row[answered])]
    raise DataError(
        f"{where} has neither `messages` nor question/answer, prompt/completion or instruction/output; "
        f"it has {sorted(row)}. Rename its columns."
    )
