"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, in the order of `transformers`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits.

    `top_k`, `top_p` (nucleus, arXiv 1904.09751) and `min_p` (a fraction of the likeliest token's probability, arXiv
    2407.01082) remove the tail. `repetition_penalty` (CTRL, arXiv 1909.05858) above 1 makes tokens less likely that
    occur in the prompt or the answer already. Raises ConfigError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(
                f"temperature={self.temperature} is negative. 0 is greedy, 1 the model's own distribution."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} leaves no token to draw. Give 1 or more, or None for all.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} is no probability. Give 0 < top_p <= 1, or None.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p={self.min_p} is no probability. Give 0 <= min_p <= 1, or None.")
        if self.repetition_penalty <= 0:
            raise ConfigError(
                f"repetition_penalty={self.repetition_penalty} would invert logits. 1 is none, 1.2 the paper's."
            )

    def scores(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """Logits (…, V) -> logits (…, V) of the distribution drawn from, -inf where truncated.

        `seen`, bool (…, V), marks the tokens that the repetition penalty applies to. With temperature 0 (greedy) only
        the penalty is applied: nothing else would change which is largest.
        """
        if seen is not None and self.repetition_penalty != 1:
            penalty = self.repetition_penalty
            logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
        if self.temperature == 0:
            return logits
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kept, places = logits.topk(self.top_k, dim=-1)
            logits = torch.full_like(logits, -torch.inf).scatter(-1, places, kept)
        if self.top_p is not None and self.top_p < 1:
            ordered, places = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
            cut = ordered.cumsum(-1) - ordered >= self.top_p  # the likeliest token always stays
            logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, places, cut), -torch.inf)
        if self.min_p:
            probabilities = logits.softmax(-1)
            cut = probabilities < self.min_p * probabilities.amax(-1, keepdim=True)
            logits = logits.masked_fill(cut, -torch.inf)
        return logits

    def logprobs(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """Logits (…, V) -> log probabilities (…, V) of the distribution drawn from: what RL must score with."""
        return self.scores(logits, seen).log_softmax(-1)

    def draw(self, logits: Tensor, noise: Tensor | None, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, V) and exponential noise (B, V) -> tokens (B,) int64 and their log probabilities (B,).

        The token with the smallest noise divided by its probability is drawn (the Gumbel-max trick); noise None:
        greedy. Where logits differ in the last bits, as they do between batch sizes, only near-ties can change;
        inverting the cumulative distribution would move all boundaries and change one token in some thousands.
        """
        scores = self.scores(logits, seen)
        arrival = scores if noise is None else scores - noise.log()
        # On a CPU torch's argmax takes eight times as long as NumPy's.
        cpu = arrival.device.type == "cpu"
        tokens = torch.from_numpy(arrival.numpy().argmax(-1)) if cpu else arrival.argmax(-1)
        return tokens, scores.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
