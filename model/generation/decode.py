"""The decoding step, one more token for every row: `Transformer.hidden` for T = 1 with weights laid out for it.

Notable:
- for several rows, matrices that read the same input are merged, and stored input-major: a CPU multiplies few rows by
  a matrix of that layout up to twice as fast (32 rows: 110 to 150 GFLOP/s a core against 75). Some twenty steps pay for
  the copy; a single row gains nothing, because it is bound by memory bandwidth in either layout;
- no modules and few kernels: in a small model their overhead is larger than the arithmetic;
- under autocast the copy is in autocast's type, so that no weight is converted again at every step.
The results equal those of the modules up to the order of summation; tests/model/test_decode.py compares them.

Letters in shapes: B rows, C width, H query heads, K key/value heads, D head size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.generation.quantise import Int8Linear
from model.network.attention import Cached, KVCache
from model.network.norm import RMSNorm
from model.network.transformer import Block, Transformer

PANEL = 512  # columns of a panel, about; 256 to 1,024 depending on the number of columns
PANELS_FROM = 2**18  # elements of a matrix; smaller ones stay in a core's cache
Layer = nn.Linear | Int8Linear
Matrix = Callable[[Tensor], Tensor]  # (B, in) -> (B, out)


class Decoder:
    """A model's weights, valid until they change. `copy`: copy them into the faster layout."""

    def __init__(self, model: Transformer, copy: bool = True):
        self.embedding = model.embed_tokens.weight
        self.blocks = [_Block(cast(Block, block), copy) for block in model.layers]
        self.head = after_norm(model.norm, [model.lm_head], copy)
        # rotate() as x · cos + (right, left) · sin: the sign of its (-right, left) is in the table.
        left, right = model.rope_sin.chunk(2, dim=-1)
        self.rope = torch.stack((model.rope_cos, torch.cat((-left, right), dim=-1)), dim=1)  # (T, 2, D)

    def step(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """tokens (B,) int64, one for each row of the cache -> logits (B, V) float32 of the next token."""
        new = Cached.step(cache, 1)
        rows, positions = new.rows[:, 0], new.positions[:, 0]
        # Converted once for all layers: attention would convert a mask of bools to this in each of them.
        mask = torch.where(new.mask, 0.0, -torch.inf).to(cache.both.dtype)
        x = self.embedding[tokens]
        cos, sin = self.rope[positions, :, None].to(x.dtype).unbind(1)
        for block, slots, (keys, values) in zip(self.blocks, new.slots, new.stored, strict=True):
            q, slots[rows, positions] = block.project(x, cos, sin)
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            x = block.finish(x, out.reshape(len(x), -1))
        new.done()
        return self.head(x).float()


class _Block:
    def __init__(self, block: Block, copy: bool):
        attention, mlp = block.self_attn, block.mlp
        self.head_dim = attention.head_dim
        self.qkv = after_norm(
            block.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj], copy
        )
        self.o = matrix([attention.o_proj], copy)
        self.gate_up = after_norm(block.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], copy)
        self.down = matrix([mlp.down_proj], copy)
        heads, kv_heads = (p.out_features // self.head_dim for p in (attention.q_proj, attention.k_proj))
        self.heads, self.kv_heads = heads, kv_heads
        self.qk_norm = None
        q, k = attention.q_norm, attention.k_norm
        if isinstance(q, RMSNorm) and isinstance(k, RMSNorm):
            weight = torch.cat([q.weight.expand(heads, -1), k.weight.expand(kv_heads, -1)])  # (H + K, D)
            self.qk_norm = _Norm(q.eps, weight)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C), cos and sin (B, 1, D) -> queries (B, K, H/K, D); keys and values (B, 2, K, D)."""
        b, d, heads, kv_heads = len(x), self.head_dim, self.heads, self.kv_heads
        qkv = self.qkv(x).view(b, -1, d)
        qk = rotated = qkv[:, : heads + kv_heads]
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        torch.addcmul(qk * cos, qk.roll(d // 2, -1), sin, out=rotated)
        return qkv[:, :heads].view(b, kv_heads, -1, d), qkv[:, heads:].view(b, 2, kv_heads, d)

    def finish(self, x: Tensor, heads: Tensor) -> Tensor:
        """x (B, C) and the outputs of its heads (B, H·D) -> (B, C)."""
        x = x + self.o(heads)
        gate, up = self.gate_up(x).chunk(2, -1)
        return x + self.down(F.silu(gate).mul_(up))


def matrix(layers: Sequence[Layer], copy: bool) -> Matrix:
    """The function x -> outputs of the layers, concatenated: (B, in) -> (B, sum of out)."""
    if int8 := [layer for layer in layers if isinstance(layer, Int8Linear)]:
        return Int8Linear.merged(int8)
    if not copy:
        return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)
    weight = laid_out(cast(Sequence[nn.Linear], layers))
    return lambda x: product(x, weight)


def after_norm(norm: RMSNorm, layers: Sequence[Layer], copy: bool) -> Matrix:
    """The function x -> outputs of the layers for norm(x); a copy of the weights has the norm's gain multiplied in."""
    plain_norm = _Norm(norm.eps, norm.weight)
    if copy and not isinstance(layers[0], Int8Linear):
        weight = laid_out(cast(Sequence[nn.Linear], layers), plain_norm.gain)
        return lambda x: product(plain_norm.unit(x).to(x.dtype), weight)
    plain = matrix(layers, copy)
    return lambda x: plain(plain_norm(x))


@torch.no_grad()
def laid_out(layers: Sequence[nn.Linear], gain: Tensor | None = None) -> Tensor:
    """The layers' weights side by side and input-major, for x or, with a gain (in,), for x · gain.

    (in, sum of out), or divided into panels (panels, in, sum of out / panels): what `product` takes.
    """
    first, sizes = layers[0].weight, [layer.out_features for layer in layers]
    out = torch.empty(first.shape[1], sum(sizes), dtype=compute_dtype(first), device=first.device)
    for layer, columns in zip(layers, out.split(sizes, dim=1), strict=True):
        by_input = layer.weight.t()
        columns.copy_(by_input) if gain is None else torch.mul(by_input, gain[:, None], out=columns)
    panels = n_panels(out)
    return out if panels == 1 else out.view(len(out), panels, -1).transpose(0, 1).contiguous()


def n_panels(weight: Tensor) -> int:
    """The best number of panels for a matrix (in, out). 1: it is small, on a GPU, or no number of panels fits."""
    columns = weight.shape[1]
    if weight.device.type != "cpu" or weight.numel() < PANELS_FROM:
        return 1
    candidates = range(columns // (2 * PANEL) or 1, columns // (PANEL // 2) + 1)
    fit = [n for n in candidates if columns % n == 0 and n >= torch.get_num_threads()]
    return min(fit, key=lambda n: abs(columns // n - PANEL), default=1)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, in) times a matrix as `laid_out` returns it: (B, out)."""
    if weight.ndim == 2:
        return torch.mm(x, weight)
    return torch.bmm(x.expand(len(weight), -1, -1), weight).transpose(0, 1).flatten(1)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The type of products with a weight: autocast's where that is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class _Norm:
    """RMSNorm's forward pass. Torch composes it of eight kernels on a CPU; here there are three, and one for the gain
    √n·weight: x / hypot(‖x‖, √(n·eps)) · (√n·weight) for n numbers."""

    def __init__(self, eps: float, weight: Tensor):
        n = weight.shape[-1]
        self.gain = weight.float() * n**0.5  # (n,), or one row per head: (H, n)
        self.least = torch.tensor((n * eps) ** 0.5, device=weight.device)

    def unit(self, x: Tensor) -> Tensor:
        """x divided by its norm, without the gain, float32."""
        wide = x.float()
        return wide / torch.hypot(torch.linalg.vector_norm(wide, dim=-1, keepdim=True), self.least)

    def __call__(self, x: Tensor) -> Tensor:
        return self.unit(x).mul_(self.gain).to(x.dtype)
