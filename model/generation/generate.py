"""Tokens from the model: batched sampling with a key/value cache, and tools that run in the middle of an answer.

Notable:
- each row has its own random stream: a prompt gives the same sample alone or in any batch;
- `logprobs` are those of the very distribution that was sampled from, penalty, temperature and truncation included.

How a batch is generated: batch.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Any

import torch

from core.errors import ConfigError
from model.generation.batch import Batch, Completion, Stops, ToolCaller
from model.generation.sampling import Sampling
from model.network.transformer import Transformer
from model.tokenizer import Tokenizer
from model.vocabulary.special import SPECIAL_TOKENS

Tool = Callable[[str], str]  # the text of a call -> the text of its response


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    seed: int | Sequence[int] = 0,
    tool: Tool | None = None,
    tokenizer: Tokenizer | None = None,
    batch_size: int = 256,
) -> list[Completion]:
    """Continue each prompt (token ids) by up to max_new_tokens tokens; fewer where the model's context ends before.

    temperature 0 is greedy; for the other settings of sampling see sampling.py. `seed`: one per prompt, or a number
    s, which gives prompt i the seed s + i. `stop_strings` (need `tokenizer`) end a row as soon as its text has one.
    `tool` (needs `tokenizer`) gets the text between <tool_call> and </tool_call> whenever the model closes a call;
    its answer is written as <tool_response>answer</tool_response> and the model continues. Raises ConfigError for a
    setting of sampling or a prompt that cannot be used.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    batches = _batches(
        model, prompts, max_new_tokens, sampling, stop_ids, stop_strings, seed, tool, tokenizer, batch_size
    )
    completions: list[Completion] = []
    for batch in batches:
        for _ in batch.run():
            pass
        completions += batch.completions()
    return completions


@torch.inference_mode()
def stream(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: Tokenizer,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    seed: int | Sequence[int] = 0,
    tool: Tool | None = None,
    batch_size: int = 256,
    **sampling: Any,
) -> Generator[tuple[int, str], None, list[Completion]]:
    """`generate`, with the text while it is generated: (index of the prompt, next piece of its text).

    Pieces are whole characters; the possible beginning of a stop string is held back until it is decided. A row's
    pieces, joined, are the `text` of its completion. The generator's return value is the list of completions.
    """
    settings = Sampling(**sampling)
    batches = _batches(
        model, prompts, max_new_tokens, settings, stop_ids, stop_strings, seed, tool, tokenizer, batch_size
    )
    completions: list[Completion] = []
    for batch in batches:
        for row, piece in batch.run(live=True):
            yield len(completions) + row, piece
        completions += batch.completions()
    return completions


def _batches(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: Collection[int],
    stop_strings: Sequence[str],
    seed: int | Sequence[int],
    tool: Tool | None,
    tokenizer: Tokenizer | None,
    batch_size: int,
) -> Iterator[Batch]:
    """Check the arguments of `generate` and divide the prompts into batches."""
    caller = None
    if tool is not None:
        if tokenizer is None or SPECIAL_TOKENS["tool_call"] not in tokenizer.special_ids:
            raise ConfigError(
                "A tool needs a tokenizer that has the tokens <tool_call> and <tool_response>: pass it."
            )
        caller = ToolCaller(tool, tokenizer)
    if stop_strings and (tokenizer is None or "" in stop_strings):
        raise ValueError("stop_strings are looked for in the text: pass the tokenizer, and no empty string.")
    seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts came with {len(seeds)} seeds. Give one seed each, or one number."
        )
    context = model.config.max_seq_len
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise ConfigError(
                f"Prompt {i} has {len(prompt)} tokens; the model's context takes 1 to {context - 1}. "
                "Shorten it, or start an empty one with the document separator."
            )
    stops = Stops(stop_ids, stop_strings, tokenizer)
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        yield Batch(model, prompts[part], seeds[part], max_new_tokens, sampling, stops, caller)
