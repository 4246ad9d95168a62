"""The language model: the decoder-only transformer of Qwen3 (arXiv 2505.09388); without QK-norm, Llama's.

Notable:
- RMSNorm before each half of a block, rotary positions, grouped-query attention with RMS-normed queries and
  keys, SwiGLU, no biases, one embedding matrix for input and output unless untied;
- parameter names and weight layouts are those of `transformers`: a model folder is a plain renaming (model/hub);
- `hidden` stops before the head and `forward(ids, targets=…)` returns the loss of each token, or their sum, without
  ever holding all logits of a big vocabulary (loss.py);
- documents packed into one row do not attend to each other where `documents` is given (attention.py);
- one setting, `Config.from_depth(depth)`, gives all others (config.py).

Letters in shapes: B rows, T tokens, C width, H query heads, K key/value heads, D head size, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import ConfigError
from model.network.attention import Cached, KVCache, Packed, Prefill, causal, has_varlen_kernel
from model.network.config import Config
from model.network.loss import Head
from model.network.norm import RMSNorm
from model.network.rope import rope_tables, rotate

Rope = tuple[Tensor, Tensor]  # cosines and sines
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q, k, v -> the output of each head


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions and, in Qwen3, QK-norm."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        queries, keys = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.d_model, queries, bias=False)
        self.k_proj = nn.Linear(config.d_model, keys, bias=False)
        self.v_proj = nn.Linear(config.d_model, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.d_model, bias=False)
        self.q_norm: RMSNorm | nn.Identity
        self.k_norm: RMSNorm | nn.Identity
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        """x (B, T, C) -> (B, T, C); `attend` is one of the kinds of attention.py."""
        heads = (*x.shape[:2], -1, self.head_dim)
        v = self.v_proj(x).view(heads)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)), *rope).to(v.dtype)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)), *rope).to(v.dtype)
        out = attend(self.layer, q, k, v)
        return self.o_proj(out.reshape(*x.shape[:2], -1))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = x + self.self_attn(self.input_layernorm(x), rope, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Token ids to logits. `Transformer(config)` draws its weights from torch's global generator."""

    rope_cos: Tensor  # (max_seq_len, D)
    rope_sin: Tensor

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = Head(config.d_model, config.vocab_size)
        self.make_rope_tables()
        self.init_weights()
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def make_rope_tables(self) -> None:
        """Compute the rotary tables; to be repeated when a model created on the meta device has got its weights."""
        c = self.config
        cos, sin = rope_tables(c.max_seq_len, c.head_dim, c.rope_theta, c.rope_scaling)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Variance-preserving matrices; blocks start as the identity, as in nanochat; embeddings small enough for
        a shared head to start near the uniform distribution. On the demo's shape, 150 steps at a rate of 6e-3: loss
        3.44, against 3.58 with GPT-2's scaled outputs and 4.93 with its standard deviation of 0.02 throughout."""
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                weight.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
            else:
                scale = 0.5 if name == "embed_tokens.weight" else 1.0
                weight.normal_(0.0, scale * weight.shape[1] ** -0.5)

    def hidden(
        self, ids: Tensor, cache: KVCache | Prefill | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """ids (B, T) int64 -> final normed states (B, T, C), which `head` turns into logits.

        With a cache the ids continue its rows, and it grows by T tokens in every row; with a Prefill they are the
        prompts that it was made for. `documents` (B, T), integers ascending along a row, is the document of each token
        among those packed into a row: it attends to no other. Raises ConfigError for a row longer than the context,
        ValueError for arguments that do not fit each other.
        """
        t = ids.shape[1]
        step = Cached.step(cache, t) if isinstance(cache, KVCache) else cache
        end = t if step is None else step.seen
        if end > self.config.max_seq_len:
            raise ConfigError(
                f"A row of {end} tokens does not fit the model's context of {self.config.max_seq_len}. "
                "Shorten the input, or train with a larger max_seq_len."
            )
        x = self.embed_tokens(ids)
        rope = self._rope(slice(t) if step is None else step.positions, x.dtype)
        attend: Attend = causal if step is None else step
        if documents is not None:
            attend = self._packed(documents, x, cache)
        for layer in self.layers:
            x = layer(x, rope, attend)
        if step is not None:
            step.done()
        return self.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, C) -> logits (…, V), float32."""
        return self.lm_head(hidden).float()

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
        weights: Tensor | None = None,
        reduction: str = "none",
    ) -> Tensor:
        """ids (B, T) int64 -> logits (B, T, V) float32; with targets (B, T), the losses (B, T) in nats.

        targets[b, t] is the token that should follow ids[b, t]; where it is IGNORE (-100) the loss is 0.
        reduction "sum" gives the sum of the losses, each times its weight if weights (B, T) are given: faster to
        train with than to sum what "none" gives. cache and documents: see `hidden`.
        """
        hidden = self.hidden(ids, cache, documents)
        return self.head(hidden) if targets is None else self.lm_head(hidden, targets, weights, reduction)

    def num_params(self, embedding: bool = True) -> int:
        """Parameters, a shared matrix once; without the input embedding (but with the head) if so asked."""
        return self.config.num_params(embedding)

    def flops_per_token(self, seq_len: int | None = None) -> int:
        """Floating-point operations to train one token (forward and backward); see `Config.flops_per_token`."""
        return self.config.flops_per_token(seq_len)

    def _rope(self, positions: Tensor | slice, dtype: torch.dtype) -> Rope:
        """Cosines and sines to broadcast over heads: (T, 1, D), or (B, T, 1, D) where rows differ in position."""
        cos, sin = self.rope_cos[positions], self.rope_sin[positions]
        return cos.unsqueeze(-2).to(dtype), sin.unsqueeze(-2).to(dtype)

    def _packed(self, documents: Tensor, x: Tensor, cache: KVCache | Prefill | None) -> Packed:
        if cache is not None or documents.shape != x.shape[:2]:
            raise ValueError(
                f"documents {tuple(documents.shape)} must give the document of each of the {tuple(x.shape[:2])} "
                "tokens, with no cache, whose rows are one document each."
            )
        return Packed(documents, varlen=has_varlen_kernel(x, self.config.head_dim), device=x.device)
