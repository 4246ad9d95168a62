"""One batch of prompts, generated token by token until every row has stopped.

Notable:
- rows keep their own length: prompts go through the model end to end, unpadded, and each row then continues at its
  own position;
- equal prompts (RL asks for many samples of one) go through the model once;
- finished rows leave the batch; per token, Python touches only the rows where something happens, except with stop
  strings and streaming, which read every token.

Letters in shapes: B rows, V vocabulary.
"""

from __future__ import annotations

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
    """The continuation of one prompt. The lists are equally long, one entry per token."""

    ids: list[int]  # the stop token included, if one came, or the tokens that hold the stop string
    sampled: list[bool]  # False where the environment inserted the token (a tool's response)
    # Nats, of the distribution sampled from; greedy: of the model's own, with repetition penalty; inserted tokens: 0
    logprobs: list[float]
    finished: bool  # ended by a stop token or string, not by max_new_tokens or the end of the context
    text: str | None = None  # without stop token, cut before the stop string; None if no tokenizer was given


@dataclass(frozen=True)
class ToolCaller:
    """Runs the tool call that a row has just closed; its response is forced on the row as its next tokens."""

    tool: Callable[[str], str]
    tokenizer: Tokenizer

    def response(self, written: list[int]) -> list[int]:
        """Token ids up to and including </tool_call> -> ids of the response; none if no call was opened."""
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
class Stops:
    """What ends a row: these tokens, and these strings in its text (which need the tokenizer)."""

    ids: Collection[int]
    strings: Sequence[str]
    tokenizer: Tokenizer | None


class Batch:
    """Rows being generated. `rows`: the indices, among all rows of the batch, of those still in the cache."""

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling,
        stops: Stops,
        caller: ToolCaller | None,
    ):
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
        """Generate; with `live`, yield (row, next piece of its text) meanwhile."""
        if live or self.stops.strings:
            self.texts = [LiveText(self.stops.strings) for _ in self.prompts]
        if not self.steps:
            return
        logits = self._prefill()
        decoder = None
        for step in range(self.steps):
            tokens, drawn = self._choose(logits, step)
            if self.stop_ids.numel() or self.texts:
                yield from self._stop(step, tokens, drawn, live)
            alive = (self.lengths > step + 1)[self.rows]
            if self.caller is not None:
                calls = (tokens == self.caller.tokenizer.tool_call_end_id) & drawn & alive
                for row in self.rows[calls].tolist():
                    self._force_response(row, step, self.caller)
            if not (tokens := self._compact(tokens, alive)).numel():
                break
            decoder = decoder or Decoder(self.model, copy=len(tokens) >= 4 and self.steps - step > 20)
            logits = decoder.step(tokens, self.cache)
        if live:
            yield from ((row, piece) for row, text in enumerate(self.texts) if (piece := text.rest()))

    def completions(self) -> list[Completion]:
        """One for each prompt, in their order, once `run` has ended."""
        columns = (self.tokens, self.forced, self.logprobs, self.lengths, self.finished)
        completions = [
            Completion(ids[:n], [f < 0 for f in forced[:n]], logprobs[:n], finished)
            for ids, forced, logprobs, n, finished in zip(*(c.tolist() for c in columns), strict=True)
        ]
        if (tokenizer := self.stops.tokenizer) is not None:
            for row, completion in enumerate(completions):
                completion.text = self._text(row, completion, tokenizer)
        return completions

    def _text(self, row: int, completion: Completion, tokenizer: Tokenizer) -> str:
        if self.texts:
            return self.texts[row].text()
        stopped = completion.finished and completion.ids[-1] in self.stops.ids
        return tokenizer.decode(completion.ids[:-1] if stopped else completion.ids)

    def _prefill(self) -> Tensor:
        """Pass each different prompt once through the model and fill the cache -> logits (B, V) of the next token."""
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
        """Draw or force the next token of every row in the cache and store it -> tokens (B,), bool (B,): drawn."""
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
        """End the rows that drew a stop token, or whose text now has a stop string; with `live`, yield new text."""
        going = self.lengths[self.rows] > step
        stops = (tokens[:, None] == self.stop_ids).any(-1) & drawn & going
        self._finish(self.rows[stops], step)
        if not self.texts or (tokenizer := self.stops.tokenizer) is None:
            return
        going &= ~stops
        ended = []
        columns = (c.tolist() for c in (self.rows[going], tokens[going], drawn[going]))
        for row, token, sampled in zip(*columns, strict=True):
            if self.texts[row].add(tokenizer.decode_bytes([token]), sampled):
                ended.append(row)
            if live and (piece := self.texts[row].piece()):
                yield row, piece
        self._finish(torch.tensor(ended, dtype=torch.long, device=self.device), step)

    def _finish(self, rows: Tensor, step: int) -> None:
        """The token of this step is the last one of these rows."""
        self.lengths[rows] = step + 1
        self.finished[rows] = True

    def _noise(self, logits: Tensor) -> Tensor | None:
        """The next numbers of every row's own random stream, exponentially distributed, (B, V); None: greedy."""
        if not self.streams:
            return None
        noise = torch.empty_like(logits)
        for row, numbers in zip(self.rows.tolist(), noise, strict=True):
            numbers.uniform_(generator=self.streams[row])
        return noise.log_().neg_()  # five times as fast as exponential_

    def _seen(self) -> Tensor:
        """Which tokens occur in the prompt of each row in the cache: bool (B, V)."""
        seen = torch.zeros(len(self.rows), self.model.config.vocab_size, dtype=torch.bool)
        for marks, row in zip(seen, self.rows.tolist(), strict=True):
            marks[self.prompts[row]] = True
        return seen.to(self.device)

    def _force_response(self, row: int, step: int, caller: ToolCaller) -> None:
        """Run the call that the row closed in this step, and force the tokens of its response on the next steps."""
        written = self.prompts[row] + self.tokens[row, : step + 1].tolist()
        response = caller.response(written)[: self.steps - step - 1]
        self.forced[row, step + 1 : step + 1 + len(response)] = torch.tensor(response, dtype=torch.long)

    def _compact(self, tokens: Tensor, alive: Tensor) -> Tensor:
        """Drop finished rows, but only when it saves time: copying the cache costs about as much as a step."""
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
    """The prompts in order, divided into passes of at most PREFILL_TOKENS tokens, or of one prompt."""
    some: list[tuple[int, ...]] = []
    tokens = 0
    for prompt in prompts:
        if some and tokens + len(prompt) > PREFILL_TOKENS:
            yield some
            some, tokens = [], 0
        some.append(prompt)
        tokens += len(prompt)
    if some:
        yield some
