"""Tokens from the model: batched sampling with a key/value cache, and tools that run in the middle of an answer.

Notable:
- rows keep their own length: prompts go through the model end to end, unpadded, and each row then continues at its
  own place;
- equal prompts (RL asks for many samples of one) go through the model once;
- each row has its own random stream: a prompt gives the same sample alone or in any batch;
- `logprobs` are those of the very distribution that was sampled from, penalty, temperature and truncation included;
- rows that are done leave the batch; per token, Python touches only the rows where something happens, but for stop
  strings and streaming, which read every token.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from model.generation.decode import Decoder, compute_dtype
from model.generation.live_text import LiveText
from model.generation.sampling import Sampling
from model.network.attention import KVCache, Prefill
from model.network.transformer import Transformer
from model.tokenizer import Tokenizer

PREFILL_TOKENS = 8192  # of prompts that go through the model in one pass, at most: a bound to its memory


@dataclass
class Completion:
    """What follows one prompt. The lists are equally long, one entry a token."""

    ids: list[int]  # the stop token included, if one came, or the tokens that hold the stop string
    sampled: list[bool]  # False where the environment wrote the token (a tool's response)
    # Nats, of the distribution sampled from; greedy: of the model's plain one, repetition penalty included; forced: 0
    logprobs: list[float]
    finished: bool  # ended by a stop token or string, not by max_new_tokens or the end of the context
    text: str | None = None  # without stop token, cut before the stop string; None if no tokenizer was given


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
    tool: Callable[[str], str] | None = None,
    tokenizer: Tokenizer | None = None,
    batch_size: int = 256,
) -> list[Completion]:
    """Continue each prompt by up to max_new_tokens tokens; fewer where the model's context ends before.

    temperature 0 is greedy; for the other settings of sampling see sampling.py. `seed`: one per prompt, or a number
    s, which gives prompt i the seed s + i. `stop_strings` (need `tokenizer`) end a row as soon as its text has one.
    `tool` (needs `tokenizer`) gets the text between <tool_call> and </tool_call> whenever the model closes a call;
    its answer is written as <tool_response>answer</tool_response> and the model goes on.
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
    tool: Callable[[str], str] | None = None,
    batch_size: int = 256,
    **sampling,
) -> Iterator[tuple[int, str]]:
    """`generate`, as it happens: (number of the prompt, next piece of its text).

    Pieces are whole characters; what may be the beginning of a stop string waits until it is known. Joined, a row's
    pieces are the `text` of its completion. The generator's return value is the list of completions.
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
    model, prompts, max_new_tokens, sampling, stop_ids, stop_strings, seed, tool, tokenizer, batch_size
) -> "Iterator[_Batch]":
    """Refuse what cannot be, and cut the prompts into batches."""
    if tool is not None and (tokenizer is None or tokenizer.tool_call_id is None):
        raise ValueError(
            "A tool needs a tokenizer that has the tokens <tool_call> and <tool_response>: pass it."
        )
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
            raise ValueError(
                f"Prompt {i} has {len(prompt)} tokens; the model's context takes 1 to {context - 1}. "
                "Shorten it, or start an empty one with the document separator."
            )
    caller = ToolCaller(tool, tokenizer) if tool is not None else None
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        stops = _Stops(stop_ids, stop_strings, tokenizer)
        yield _Batch(model, prompts[part], seeds[part], max_new_tokens, sampling, stops, caller)


@dataclass(frozen=True)
class ToolCaller:
    """Runs the call that a row has just closed and says which tokens to force on it."""

    tool: Callable[[str], str]
    tokenizer: Tokenizer

    def response(self, written: list[int]) -> list[int]:
        """Tokens up to and with </tool_call> -> tokens of the response; none if no call was opened."""
        t = self.tokenizer
        expression: list[int] = []
        for token in reversed(written[:-1]):
            if token == t.tool_call_id:
                break
            expression.insert(0, token)
        if t.tool_call_end_id in expression or len(expression) == len(written) - 1:
            return []
        answer = self.tool(t.decode(expression))
        return [t.tool_response_id, *t.encode(answer), t.tool_response_end_id]


@dataclass(frozen=True)
class _Stops:
    ids: Collection[int]
    strings: Sequence[str]
    tokenizer: Tokenizer | None


class _Batch:
    """Rows in flight. `rows` are the places, among all rows of the batch, of those still in the cache."""

    def __init__(self, model, prompts, seeds, max_new_tokens, sampling, stops, caller):
        self.model, self.sampling, self.stops, self.caller = model, sampling, stops, caller
        self.device = model.embed_tokens.weight.device
        self.prompts = [list(prompt) for prompt in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.limits = (model.config.max_seq_len - lengths).clamp(max=max_new_tokens)
        n, steps = len(prompts), max(0, int(self.limits.max()))
        self.steps = steps
        # In the cache: the longest prompt first, equal ones side by side.
        order = sorted(range(n), key=lambda row: (-len(self.prompts[row]), self.prompts[row]))
        self.rows = torch.tensor(order, device=self.device)
        self.stop_ids = torch.tensor(sorted(stops.ids), dtype=torch.long, device=self.device)
        self.tokens = torch.zeros(n, steps, dtype=torch.long, device=self.device)
        self.logprobs = torch.zeros(n, steps, device=self.device)
        self.forced = torch.full((n, steps), -1, dtype=torch.long, device=self.device)
        self.lengths = self.limits.clone()  # of the completions, shortened where a row stops
        self.finished = torch.zeros(n, dtype=torch.bool, device=self.device)
        self.streams = (
            [torch.Generator(self.device).manual_seed(s) for s in seeds] if sampling.temperature else []
        )
        self.seen = self._seen() if sampling.repetition_penalty != 1 else None  # (rows in the cache, V)
        self.texts: list[LiveText] = []

    def run(self, live: bool = False) -> Iterator[tuple[int, str]]:
        """Generate; with `live`, yield (row, piece of its text) on the way."""
        if live or self.stops.strings:
            self.texts = [LiveText(self.stops.strings) for _ in self.prompts]
        logits = self._prefill() if self.steps else None
        decoder = None
        for step in range(self.steps):
            tokens, drawn = self._choose(logits, step)
            if self.stop_ids.numel() or self.texts:
                yield from self._stop(step, tokens, drawn, live)
            alive = (self.lengths > step + 1)[self.rows]
            if self.caller is not None:
                calls = (tokens == self.caller.tokenizer.tool_call_end_id) & drawn & alive
                for row in self.rows[calls].tolist():
                    self._force(row, step)
            if not (tokens := self._compact(tokens, alive)).numel():
                break
            decoder = decoder or Decoder(self.model, copy=len(tokens) >= 4 and self.steps - step > 20)
            logits = decoder.step(tokens, self.cache)
        if live:
            yield from ((row, piece) for row, text in enumerate(self.texts) if (piece := text.rest()))

    def completions(self) -> list[Completion]:
        columns = (self.tokens, self.forced, self.logprobs, self.lengths, self.finished)
        completions = [
            Completion(ids[:n], [f < 0 for f in forced[:n]], logprobs[:n], finished)
            for ids, forced, logprobs, n, finished in zip(*(c.tolist() for c in columns), strict=True)
        ]
        if self.stops.tokenizer is not None:
            for row, completion in enumerate(completions):
                completion.text = self._text(row, completion)
        return completions

    def _text(self, row: int, completion: Completion) -> str:
        if self.texts:
            return self.texts[row].text()
        stopped = completion.finished and completion.ids[-1] in self.stops.ids
        return self.stops.tokenizer.decode(completion.ids[:-1] if stopped else completion.ids)

    def _prefill(self) -> Tensor:
        """Pass each different prompt once; fill the cache; return the logits (B, V) of what follows."""
        prompts = [tuple(self.prompts[row]) for row in self.rows.tolist()]
        different = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        config, dtype = self.model.config, compute_dtype(self.model.embed_tokens.weight)
        capacity = min(config.max_seq_len, len(prompts[0]) + self.steps)
        self.cache = KVCache(config, len(different), capacity, self.device, dtype)
        parts = []
        for some in passes(list(different)):
            new = Prefill(self.cache, different[some[0]], [len(prompt) for prompt in some])
            ids = torch.tensor([list(chain.from_iterable(some))], device=self.device)
            parts.append(self.model.head(self.model.hidden(ids, new)[0, new.last]))
        logits = torch.cat(parts)
        if len(different) < len(prompts):
            copies = torch.tensor([different[prompt] for prompt in prompts], device=self.device)
            self.cache.keep(copies)
            logits = logits[copies]
        return logits

    def _choose(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Draw or force the next token of every row in the cache and note it -> tokens (B,), which are drawn."""
        rows = self.rows
        tokens, logprobs = self.sampling.draw(logits, self._noise(logits), self.seen)
        drawn = torch.ones_like(rows, dtype=torch.bool)
        if self.caller is not None:
            forced = self.forced[rows, step]
            drawn = forced < 0
            tokens, logprobs = torch.where(drawn, tokens, forced), logprobs * drawn
        self.tokens[rows, step] = tokens
        self.logprobs[rows, step] = logprobs
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        return tokens, drawn

    def _stop(self, step: int, tokens: Tensor, drawn: Tensor, live: bool) -> Iterator[tuple[int, str]]:
        """End the rows that drew a stop token, or whose text now has a stop string; yield what live rows write."""
        going = self.lengths[self.rows] > step
        stops = (tokens[:, None] == self.stop_ids).any(-1) & drawn & going
        self._finish(self.rows[stops], step)
        if not self.texts:
            return
        going &= ~stops
        ended = []
        columns = (c.tolist() for c in (self.rows[going], tokens[going], drawn[going]))
        for row, token, sampled in zip(*columns, strict=True):
            if self.texts[row].add(self.stops.tokenizer.decode_bytes([token]), sampled):
                ended.append(row)
            if live and (piece := self.texts[row].piece()):
                yield row, piece
        self._finish(torch.tensor(ended, dtype=torch.long, device=self.device), step)

    def _finish(self, rows: Tensor, step: int) -> None:
        """The token of this step is the last one of these rows."""
        self.lengths[rows] = step + 1
        self.finished[rows] = True

    def _noise(self, logits: Tensor) -> Tensor | None:
        """The next numbers of every row's own stream, exponentially distributed, (B, V)."""
        if not self.streams:
            return None
        noise = torch.empty_like(logits)
        for row, numbers in zip(self.rows.tolist(), noise, strict=True):
            numbers.uniform_(generator=self.streams[row])
        return noise.log_().neg_()  # five times as fast as exponential_

    def _seen(self) -> Tensor:
        """Which tokens the prompt of each row in the cache holds: bool (B, V)."""
        seen = torch.zeros(len(self.rows), self.model.config.vocab_size, dtype=torch.bool)
        for marks, row in zip(seen, self.rows.tolist(), strict=True):
            marks[self.prompts[row]] = True
        return seen.to(self.device)

    def _force(self, row: int, step: int) -> None:
        written = self.prompts[row] + self.tokens[row, : step + 1].tolist()
        response = self.caller.response(written)[: self.steps - step - 1]
        self.forced[row, step + 1 : step + 1 + len(response)] = torch.tensor(response, dtype=torch.long)

    def _compact(self, tokens: Tensor, alive: Tensor) -> Tensor:
        """Drop finished rows, but only when it pays: moving the cache costs about as much as a step."""
        n = int(alive.sum())
        if n == len(alive) or (n > 0.75 * len(alive) and self.cache.longest < self.cache.capacity):
            return tokens
        kept = alive.nonzero()[:, 0]
        self.rows, tokens = self.rows[kept], tokens[kept]
        if n:
            self.cache.keep(kept)
            self.seen = None if self.seen is None else self.seen[kept]
        return tokens


def passes(prompts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """The prompts in order, as many at a time as PREFILL_TOKENS hold, or one."""
    some, tokens = [], 0
    for prompt in prompts:
        if some and tokens + len(prompt) > PREFILL_TOKENS:
            yield some
            some, tokens = [], 0
        some.append(prompt)
        tokens += len(prompt)
    if some:
        yield some
