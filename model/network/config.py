"""The shape of a model and what follows from it: weight shapes, parameters, operations. Light: imports no torch.

Notable: one setting, `depth`, gives all others (`Config.from_depth`); what does not fit together is refused here.

Letters in shapes: C width, H query heads, K key/value heads, D head size, F width of the MLP, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from core.errors import ConfigError

IGNORE = -100  # a target that carries no loss; PyTorch's own convention in cross_entropy
# Logits of a chunk, at most. CPU: 128 MB of float32; with fewer the gradient of the matrix is traversed too often, with
# more there is little to gain (docs/training-speed.md). GPU: 1 GB, not measured, with which even a vocabulary of 50,000
# leaves 5,000 tokens to a matrix product.
LOGITS_AT_ONCE = {"cpu": 2**25, "cuda": 2**28}
ROPE_KINDS = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are scaled to a longer context (rope.py). Fields below `factor` are of the kinds named."""

    kind: str  # one of ROPE_KINDS
    factor: float  # the longer context over the one that the model was trained on
    original_max_seq_len: int = 8192  # llama3, yarn: tokens the model was first trained on; Llama 3's
    low_freq_factor: float = 1.0  # llama3: pairs of fewer rotations in the original context are scaled,
    high_freq_factor: float = 4.0  # pairs of more are not
    beta_fast: float = 32.0  # yarn: pairs of more rotations in the original context are not scaled,
    beta_slow: float = 1.0  # pairs of fewer are
    attention_factor: float | None = None  # yarn: on cosines and sines; None: the paper's 0.1·ln(factor) + 1
    truncate: bool = True  # yarn: the ramp begins and ends at whole pairs

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise ConfigError(
                f"There is no RoPE scaling '{self.kind}' here. There are: {', '.join(ROPE_KINDS)}."
            )
        if self.factor < 1:
            raise ConfigError(
                f"A RoPE scaling factor of {self.factor} would shorten the context. Give 1 or more."
            )
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"llama3 scaling needs high_freq_factor ({self.high_freq_factor}) above low_freq_factor "
                f"({self.low_freq_factor}): the ramp is between the two."
            )

    @property
    def amplitude(self) -> float:
        """The factor on cosines and sines; queries and keys both have it, so attention logits get its square."""
        if self.kind != "yarn":
            return 1.0
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor


@dataclass(frozen=True)
class Config:
    """The shape of a model. The fields are those of `transformers` (num_hidden_layers, …) under shorter names."""

    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    d_model: int
    d_ff: int
    max_seq_len: int = 1024  # tokens
    rope_theta: float = 10_000.0  # RoFormer's; enough for contexts below some 8,000 tokens
    rope_scaling: RopeScaling | None = None  # for contexts longer than those trained on
    norm_eps: float = 1e-6
    qk_norm: bool = True  # True: Qwen3, False: Llama
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.n_head % self.n_kv_head:
            raise ConfigError(
                f"n_head={self.n_head} is not a multiple of n_kv_head={self.n_kv_head}: every key/value head "
                "serves the same number of query heads. Choose n_kv_head among the divisors of n_head."
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"head_dim={self.head_dim} is odd but rotary positions rotate pairs: make it even."
            )

    @classmethod
    def from_depth(cls, depth: int, vocab_size: int, max_seq_len: int = 1024, **overrides: Any) -> Config:
        """The one setting: `depth` layers and a width to match; any other field may be overridden by name.

        Width is 64 per layer as in nanochat (depth 12 is GPT-2's 768, depth 20 is 1,280). Below depth 8 that would
        make small models too wide for their depth, so it is 8·depth per layer: depth 4 is 128 wide and has 0.7M
        parameters besides its embedding. Raises ConfigError.
        """
        if depth < 1:
            raise ConfigError(
                f"depth={depth}: a model has at least one layer. Set depth to 1 or more (demo: 4)."
            )
        aspect = min(64, 8 * depth)
        width = max(64, depth * aspect)
        head_dim = 32 if width < 512 else 64 if width < 1280 else 128
        n_head = max(2, round(width / head_dim / 2) * 2)  # even: two query heads share a key/value head
        width = n_head * head_dim
        shape = {
            "n_layer": depth,
            "n_head": n_head,
            "n_kv_head": n_head // 2,
            "head_dim": head_dim,
            "d_model": width,
            "d_ff": max(64, width * 8 // 3 // 64 * 64),  # three matrices of 8/3·C as two of 4·C
        }
        return cls(vocab_size=vocab_size, max_seq_len=max_seq_len, **(shape | overrides))

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter of `Transformer(self)`, in its order; a shared matrix once."""
        queries, keys = self.n_head * self.head_dim, self.n_kv_head * self.head_dim
        head_norms = {"q_norm": (self.head_dim,), "k_norm": (self.head_dim,)} if self.qk_norm else {}
        block: dict[str, tuple[int, ...]] = {
            "input_layernorm": (self.d_model,),
            "self_attn.q_proj": (queries, self.d_model),
            "self_attn.k_proj": (keys, self.d_model),
            "self_attn.v_proj": (keys, self.d_model),
            "self_attn.o_proj": (self.d_model, queries),
            **{f"self_attn.{name}": shape for name, shape in head_norms.items()},
            "post_attention_layernorm": (self.d_model,),
            "mlp.gate_proj": (self.d_ff, self.d_model),
            "mlp.up_proj": (self.d_ff, self.d_model),
            "mlp.down_proj": (self.d_model, self.d_ff),
        }
        layers = {
            f"layers.{layer}.{name}.weight": shape
            for layer in range(self.n_layer)
            for name, shape in block.items()
        }
        embedding = (self.vocab_size, self.d_model)
        head = {} if self.tie_embeddings else {"lm_head.weight": embedding}
        return {"embed_tokens.weight": embedding} | layers | {"norm.weight": (self.d_model,)} | head

    def num_params(self, embedding: bool = True) -> int:
        """Parameters, a shared matrix once; without the input embedding (but with the head) if so asked."""
        total = sum(math.prod(shape) for shape in self.weight_shapes().values())
        return total if embedding or self.tie_embeddings else total - self.vocab_size * self.d_model

    def flops_per_token(self, seq_len: int | None = None) -> int:
        """Floating-point operations to train one token (forward and backward): 6 a matrix weight, plus
        12·layers·H·D·T for attention to all T tokens, as PaLM counts (arXiv 2204.02311, appendix B)."""
        attention = 12 * self.n_layer * self.n_head * self.head_dim * (seq_len or self.max_seq_len)
        return 6 * self.num_params(embedding=False) + attention
