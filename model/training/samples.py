"""Sample texts of a model in training: greedy continuations of a few fixed prompts.

The prompts are the beginnings of held-out documents, so that each continuation can be compared with the original.
samples.jsonl: one JSON object an evaluation, {"step": int, "samples": [{"prompt", "continuation", "truth"}]}; a run
that resumes may write a step again, and the last one counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.data.config import HELD_OUT

if TYPE_CHECKING:
    from torch import nn

    from model.data.loader import TokenData
    from model.tokenizer import Tokenizer

DECIDES_NOTHING = "texts to read, which no number depends on"
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 4, 16, 48


def continuations(data: TokenData, tokenizer: Tokenizer) -> Callable[[nn.Module], list[dict[str, str]]]:
    """A function of the model: its continuations of the first held-out documents that are long enough."""
    from model.generation.generate import generate
    from model.network.transformer import Transformer

    held_out = (data.tokens(number).tolist() for number in data.documents(HELD_OUT))
    documents = list(islice((d for d in held_out if len(d) > 2 * PROMPT_TOKENS), PROMPTS))
    prompts = [[data.separator, *document[:PROMPT_TOKENS]] for document in documents]
    truths = [document[PROMPT_TOKENS : PROMPT_TOKENS + NEW_TOKENS] for document in documents]

    def sample(model: nn.Module) -> list[dict[str, str]]:
        assert isinstance(model, Transformer)
        completions = generate(model, prompts, max_new_tokens=NEW_TOKENS, stop_ids=[data.separator])
        return [
            {
                "prompt": tokenizer.decode(prompt[1:]),
                "continuation": tokenizer.decode([i for i in completion.ids if i != data.separator]),
                "truth": tokenizer.decode([i for i in truth if i != data.separator]),
            }
            for prompt, completion, truth in zip(prompts, completions, truths, strict=True)
        ]

    return sample


def as_markdown(path: Path) -> str:
    """samples.jsonl as a page: one table a prompt, one row an evaluation."""
    steps = {row["step"]: row["samples"] for row in _rows(path)}
    pages = []
    for number, sample in enumerate(next(iter(steps.values()), [])):
        rows = [
            (f"step {step:,}", samples[number]["continuation"]) for step, samples in sorted(steps.items())
        ]
        rows.append(("as written", sample.get("truth", "")))
        table = "".join(f"| {who} | {_cell(text)} |\n" for who, text in rows)
        pages.append(f"**{_cell(sample['prompt'])}** …\n\n| | |\n|---|---|\n{table}")
    return "# What the model wrote\n\n" + "\n".join(pages)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        with suppress(ValueError):  # a line cut by a kill
            yield json.loads(line)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
