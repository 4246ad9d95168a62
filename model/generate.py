"""Tokens from the model: batched sampling with a key/value cache, and tools that run in the middle of an answer.

Notable:
- rows keep their own length: prompts are padded on the right for the first pass (causal attention never looks there)
  and each row then continues at its own place. Padding therefore costs no mask and changes no number;
- equal prompts (RL asks for many samples of one) go through the model once;
- each row has its own random stream: a prompt gives the same sample alone or in any batch;
- `logprobs` are those of the very distribution that was sampled from, temperature and truncation included;
- rows that are done leave the batch; per token, Python touches only the rows where something happens.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.tokenizer import Tokenizer
from model.transformer import KVCache, Transformer


@dataclass
class Completion:
    """What follows one prompt. The lists are equally long, one entry a token."""

    ids: list[int]  # the stop token included, if one came
    sampled: list[bool]  # False where the environment wrote the token (a tool's response)
    logprobs: list[
        float
    ]  # nats, of the distribution sampled from; greedy: of the model's plain one; forced: 0
    finished: bool  # ended by a stop token, not by max_new_tokens or the end of the context


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Collection[int] = (),
    seed: int | Sequence[int] = 0,
    tool: Callable[[str], str] | None = None,
    tokenizer: Tokenizer | None = None,
    batch_size: int = 256,
) -> list[Completion]:
    """Continue each prompt by up to max_new_tokens tokens; fewer where the model's context ends before.

    temperature 0 is greedy. `seed`: one per prompt, or a number s, which gives prompt i the seed s + i.
    `tool` (needs `tokenizer`) gets the text between <tool_call> and </tool_call> whenever the model closes a call;
    its answer is written as <tool_response>answer</tool_response> and the model goes on.
    """
    if tool is not None and (tokenizer is None or tokenizer.tool_call_id is None):
        raise ValueError(
            "A tool needs a tokenizer that has the tokens <tool_call> and <tool_response>: pass it."
        )
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
    sampling = Sampling(temperature, top_k, top_p)
    caller = ToolCaller(tool, tokenizer) if tool is not None else None
    completions: list[Completion] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        batch = _Batch(model, prompts[part], seeds[part], max_new_tokens, sampling, stop_ids, caller)
        completions += batch.run()
    return completions


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits. `top_k` and `top_p` (nucleus, arXiv 1904.09751) cut the tail off."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(
                f"temperature={self.temperature} is negative. 0 is greedy, 1 the model as it is."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} leaves no token to draw. Give 1 or more, or None for all.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is no share of probability. Give 0 < top_p <= 1, or None.")

    def logprobs(self, logits: Tensor) -> Tensor:
        """Logits (…, V) -> log probabilities (…, V) of the distribution drawn from, -inf where cut off.

        RL must score with this what it sampled. Greedy gives the model's plain distribution.
        """
        if self.temperature == 0:
            return logits.log_softmax(-1)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kept, places = logits.topk(self.top_k, dim=-1)
            logits = torch.full_like(logits, -torch.inf).scatter(-1, places, kept)
        if self.top_p is not None and self.top_p < 1:
            ordered, places = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
            cut = ordered.cumsum(-1) - ordered >= self.top_p  # the likeliest token always stays
            logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, places, cut), -torch.inf)
        return logits.log_softmax(-1)

    def draw(self, logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (B, V) and exponential noise (B, V) -> tokens (B,) int64 and their log probabilities (B,).

        The token whose noise, divided by its probability, arrives first (the Gumbel-max trick). Where logits differ
        in the last bits, as they do between batch sizes, only near-ties can change; inverting the cumulative
        distribution would move all borders and change a token in some thousands.
        """
        logprobs = self.logprobs(logits)
        tokens = (logits if self.temperature == 0 else logprobs - noise.log()).argmax(-1, keepdim=True)
        return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]


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


class _Batch:
    """Rows in flight. `rows` are the places, among all rows of the batch, of those still in the cache."""

    def __init__(self, model, prompts, seeds, max_new_tokens, sampling, stop_ids, caller):
        self.model, self.sampling, self.caller = model, sampling, caller
        self.device = model.embed_tokens.weight.device
        self.prompts = [list(prompt) for prompt in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.limits = (model.config.max_seq_len - lengths).clamp(max=max_new_tokens)
        n, steps = len(prompts), max(0, int(self.limits.max()))
        self.steps = steps
        self.rows = torch.arange(n, device=self.device)
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.long, device=self.device)
        self.tokens = torch.zeros(n, steps, dtype=torch.long, device=self.device)
        self.logprobs = torch.zeros(n, steps, device=self.device)
        self.forced = torch.full((n, steps), -1, dtype=torch.long, device=self.device)
        self.lengths = self.limits.clone()  # of the completions, shortened where a row stops
        self.finished = torch.zeros(n, dtype=torch.bool, device=self.device)
        self.streams = (
            [torch.Generator(self.device).manual_seed(s) for s in seeds] if sampling.temperature else []
        )

    def run(self) -> list[Completion]:
        if self.steps:
            logits = self._prefill()
            for step in range(self.steps):
                tokens = self._choose(logits, step)
                alive = (self.lengths > step + 1)[self.rows]
                if not (tokens := self._compact(tokens, alive)).numel():
                    break
                logits = self.model.head(self.model.hidden(tokens[:, None], self.cache)[:, -1])
        return self._completions()

    def _prefill(self) -> Tensor:
        """Pass each different prompt once; fill the cache; return the logits (B, V) of what follows."""
        unique = list(dict.fromkeys(map(tuple, self.prompts)))
        lengths = torch.tensor([len(prompt) for prompt in unique], device=self.device)
        longest = int(lengths.max())
        ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in unique], device=self.device)
        capacity = min(self.model.config.max_seq_len, longest + self.steps)
        dtype = self.model.embed_tokens.weight.dtype
        self.cache = KVCache(self.model.config, len(unique), capacity, self.device, dtype)
        hidden = self.model.hidden(ids, self.cache)
        self.cache.lengths = lengths
        logits = self.model.head(hidden[torch.arange(len(unique), device=self.device), lengths - 1])
        place = {prompt: i for i, prompt in enumerate(unique)}
        copies = torch.tensor([place[tuple(prompt)] for prompt in self.prompts], device=self.device)
        self.cache.keep(copies)
        return logits[copies]

    def _choose(self, logits: Tensor, step: int) -> Tensor:
        """Draw or force the next token of every row, note it, and see which rows stop or call a tool."""
        rows = self.rows
        tokens, logprobs = self.sampling.draw(logits, self._noise(logits))
        drawn = torch.ones_like(rows, dtype=torch.bool)
        if self.caller is not None:
            forced = self.forced[rows, step]
            drawn = forced < 0
            tokens, logprobs = torch.where(drawn, tokens, forced), logprobs * drawn
        self.tokens[rows, step] = tokens
        self.logprobs[rows, step] = logprobs
        going = self.lengths[rows] > step
        stops = (tokens[:, None] == self.stop_ids).any(-1) & drawn & going
        self.lengths[rows[stops]] = step + 1
        self.finished[rows[stops]] = True
        if self.caller is not None:
            calls = (tokens == self.caller.tokenizer.tool_call_end_id) & drawn & going & ~stops
            for row in rows[calls].tolist():
                self._force(row, step)
        return tokens

    def _noise(self, logits: Tensor) -> Tensor | None:
        """The next numbers of every row's own stream, exponentially distributed, (B, V)."""
        if not self.streams:
            return None
        noise = torch.empty_like(logits)
        for row, numbers in zip(self.rows.tolist(), noise, strict=True):
            numbers.uniform_(generator=self.streams[row])
        return noise.log_().neg_()  # five times as fast as exponential_

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
        return tokens

    def _completions(self) -> list[Completion]:
        columns = (self.tokens, self.forced, self.logprobs, self.lengths, self.finished)
        return [
            Completion(ids[:n], [f < 0 for f in forced[:n]], logprobs[:n], finished)
            for ids, forced, logprobs, n, finished in zip(*(c.tolist() for c in columns), strict=True)
        ]
