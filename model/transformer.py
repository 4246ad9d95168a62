"""The language model: a decoder-only transformer as Qwen3 has it (arXiv 2505.09388); sans QK-norm, Llama's.

Notable:
- RMSNorm before each half of a block, rotary positions, grouped-query attention with RMS-normed queries and
  keys, SwiGLU, no biases, one embedding matrix for input and output unless untied;
- parameter names and weight layouts are those of `transformers`: a model folder is a plain renaming (hub.py);
- `hidden` stops before the head and `forward(ids, targets=…)` returns the loss of each token, in slices when
  the logits would be large, so that a big vocabulary never has to be held whole;
- one dial: `Config.from_depth(depth)` sets everything else.

Letters in shapes: B rows, T tokens, C width, H query heads, K key/value heads, D head size, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORE = -100  # a target that carries no loss; PyTorch's own convention in cross_entropy
LOGITS_AT_ONCE = 2**26  # numbers; 256 MB of float32 logits, above which the loss is computed slice by slice


@dataclass(frozen=True)
class Config:
    """The shape of a model. Field by field what `transformers` calls vocab_size, num_hidden_layers, …"""

    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    d_model: int
    d_ff: int
    max_seq_len: int = 1024  # tokens
    rope_theta: float = 10_000.0  # RoFormer, arXiv 2104.09864; enough below some 8,000 tokens
    norm_eps: float = 1e-6
    qk_norm: bool = True  # True: Qwen3, False: Llama
    tie_embeddings: bool = True

    def __post_init__(self):
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head={self.n_head} is not a multiple of n_kv_head={self.n_kv_head}: every key/value head "
                "serves the same number of query heads. Choose n_kv_head among the divisors of n_head."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd but rotary positions turn pairs: make it even."
            )

    @classmethod
    def from_depth(cls, depth: int, vocab_size: int, max_seq_len: int = 1024, **overrides) -> "Config":
        """The one dial: `depth` layers and a width to match; any other field may be overridden by name.

        Width is 64 a layer as in nanochat (depth 12 is GPT-2's 768, depth 20 is 1,280). Below depth 8
        that would leave small models with hardly any layers, so the ratio falls to 8·depth: depth 4 is 128 wide
        and has 0.7M parameters beside its embedding.
        """
        if depth < 1:
            raise ValueError(
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


class KVCache:
    """Keys and values of the tokens seen so far, one row a sequence, in memory reserved once.

    Rows may differ in length: row b holds tokens 0 … lengths[b]-1, so what a row computes does not depend on
    its neighbours. `keys` and `values`: (layers, B, K, capacity, D).
    """

    def __init__(self, config: Config, rows: int, capacity: int, device=None, dtype=torch.float32):
        shape = (config.n_layer, rows, config.n_kv_head, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.longest = 0  # max(lengths), known without asking the device

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def keep(self, rows: Tensor) -> None:
        """Keep these rows (indices, int64), in this order; one named twice becomes two."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths = self.lengths[rows]
        self.longest = int(self.lengths.max())

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v (B, T, K, D) of the tokens at `positions` (B, T)."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        self.keys[layer].transpose(1, 2)[rows, positions] = k
        self.values[layer].transpose(1, 2)[rows, positions] = v


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def rope_tables(config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines (max_seq_len, D) of position · theta^(-2i/D), once for each half of a head."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    # Divided, not raised to the negative power: a last bit off here is a hundred times that at position 100.
    frequencies = 1.0 / config.rope_theta**exponents
    angles = torch.outer(torch.arange(config.max_seq_len, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of x (…, D) by its angle: the layout of the Llama and Qwen checkpoints."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions and, in Qwen3, QK-norm."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.groups = config.n_head // config.n_kv_head
        queries, keys = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.d_model, queries, bias=False)
        self.k_proj = nn.Linear(config.d_model, keys, bias=False)
        self.v_proj = nn.Linear(config.d_model, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.d_model, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None, step: "Step | None"
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C). Without a step every token sees itself and all before it."""
        heads = (*x.shape[:2], -1, self.head_dim)
        v = self.v_proj(x).view(heads)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)), *rope).to(v.dtype)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)), *rope).to(v.dtype)
        if cache is not None:
            cache.write(self.layer, step.positions, k, v)
        if cache is None or step.mask is None:
            out = self._attend_causal(q, k, v)
        else:
            out = self._attend_cached(q, cache, step)
        return self.o_proj(out.reshape(*x.shape[:2], -1))

    def _attend_causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.groups > 1)
        return out.transpose(1, 2)

    def _attend_cached(self, q: Tensor, cache: KVCache, step: "Step") -> Tensor:
        k = cache.keys[self.layer, :, :, : step.seen]
        v = cache.values[self.layer, :, :, : step.seen]
        b, t, _, d = q.shape
        # The queries that share a key/value head are laid along the time axis: no key is copied for them.
        q = q.view(b, t, -1, self.groups, d).permute(0, 2, 3, 1, 4).reshape(b, -1, self.groups * t, d)
        mask = step.mask if t == 1 else step.mask.repeat(1, 1, self.groups, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.view(b, -1, self.groups, t, d).permute(0, 3, 1, 2, 4)


@dataclass
class Step:
    """Where a cached forward pass stands, the same for all layers."""

    positions: Tensor  # (B, T): place of each new token in its row
    mask: Tensor | None  # (B, 1, T, seen): what each new token sees; None if all rows start empty
    seen: int  # stored tokens to look at, the longest row's

    @classmethod
    def after(cls, cache: KVCache, t: int) -> "Step":
        """The step that adds t tokens to every row of the cache."""
        seen = cache.longest + t
        positions = cache.lengths[:, None] + torch.arange(t, device=cache.lengths.device)
        mask = None
        if cache.longest:
            mask = torch.arange(seen, device=positions.device) <= positions[:, None, :, None]
        return cls(positions, mask, seen)


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None, step: Step | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, cache, step)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Token ids to logits. `Transformer(config)` draws its weights from torch's global generator."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.make_rope_tables()
        self.init_weights()
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def make_rope_tables(self) -> None:
        """Compute the rotary tables; to be repeated when a model made on the meta device got its weights."""
        cos, sin = rope_tables(self.config)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Variance-preserving matrices; blocks start as the identity, as in nanochat; embeddings small enough for
        a shared head to start near the uniform guess. On the demo's shape, 150 steps at a rate of 6e-3: loss
        3.44, against 3.58 with GPT-2's scaled outputs and 4.93 with its deviation of 0.02 throughout."""
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                weight.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
            else:
                scale = 0.5 if name == "embed_tokens.weight" else 1.0
                weight.normal_(0.0, scale * weight.shape[1] ** -0.5)

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids (B, T) int64 -> final normed states (B, T, C), which `head` turns into logits.

        With a cache the ids continue its rows, and it grows by T tokens in every row.
        """
        t = ids.shape[1]
        if cache is None:
            step, end = None, t
        else:
            step = Step.after(cache, t)
            end = step.seen
            if end > cache.capacity:
                raise ValueError(
                    f"The cache holds {cache.capacity} tokens a row and {end} are needed. Reserve more."
                )
        if end > self.config.max_seq_len:
            raise ValueError(
                f"A row of {end} tokens does not fit the model's context of {self.config.max_seq_len}. "
                "Shorten the input, or train with a larger max_seq_len."
            )
        x = self.embed_tokens(ids)
        rope = self._rope(t, step, x.dtype)
        for layer in self.layers:
            x = layer(x, rope, cache, step)
        if cache is not None:
            cache.lengths += t
            cache.longest += t
        return self.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, C) -> logits (…, V), float32."""
        return self.lm_head(hidden).float()

    def forward(self, ids: Tensor, targets: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """ids (B, T) int64 -> logits (B, T, V) float32; with targets (B, T), the losses (B, T) in nats.

        targets[b, t] is the token that should follow ids[b, t]; where it is IGNORE (-100) the loss is 0.
        """
        hidden = self.hidden(ids, cache)
        return self.head(hidden) if targets is None else self._token_losses(hidden, targets)

    def num_params(self, embedding: bool = True) -> int:
        """Parameters, a shared matrix once; without the input embedding (but with the head) if so asked."""
        total = sum(p.numel() for p in self.parameters())
        return total if embedding or self.config.tie_embeddings else total - self.embed_tokens.weight.numel()

    def flops_per_token(self, seq_len: int | None = None) -> int:
        """Floating-point operations to train one token (forward and backward): 6 a matrix weight, plus
        12·layers·H·D·T for attention to all T tokens, as PaLM counts (arXiv 2204.02311, appendix B)."""
        c, t = self.config, seq_len or self.config.max_seq_len
        return 6 * self.num_params(embedding=False) + 12 * c.n_layer * c.n_head * c.head_dim * t

    def _rope(self, t: int, step: Step | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines to spread over heads: (T, 1, D), or (B, T, 1, D) where rows differ in place."""
        place = slice(t) if step is None or step.mask is None else step.positions
        return self.rope_cos[place].unsqueeze(-2).to(dtype), self.rope_sin[place].unsqueeze(-2).to(dtype)

    def _token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        def losses(states: Tensor, wanted: Tensor) -> Tensor:
            return F.cross_entropy(self.head(states), wanted, ignore_index=IGNORE, reduction="none")

        states, wanted = hidden.flatten(0, 1), targets.flatten()
        rows = max(1, LOGITS_AT_ONCE // self.config.vocab_size)
        if len(wanted) <= rows:
            return losses(states, wanted).view_as(targets)
        parts = zip(states.split(rows), wanted.split(rows), strict=True)
        return torch.cat([checkpoint(losses, s, w, use_reentrant=False) for s, w in parts]).view_as(targets)
