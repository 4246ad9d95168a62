"""Causal attention in four kinds, by which tokens attend to each other, and the key/value cache.

`Transformer.hidden` chooses one kind for all its layers and every layer calls it as `attend(layer, q, k, v)`, with
q (B, T, H, D) and k, v (B, T, K, D) -> (B, T, H, D).
- `causal`: each row is one text;
- `Packed`: each row holds several documents end to end, which do not attend to each other. Positions run on through
  the row: rotary positions only encode distances, so that every document computes what it would alone;
- `Prefill`: prompts end to end in one row, which do not attend to each other; each fills a row of a cache;
- `Cached`: new tokens attend to the stored ones of their row, for generation.

Letters in shapes: B rows, T tokens, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.network.config import Config


def causal(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token attends to itself and to all before it in its row."""
    return _sdpa(q, k, v, is_causal=True)


class Packed:
    """Every token attends to itself and to those before it in its document.

    `documents` (B, T), integers: the document of each token, ascending along a row. With FlashAttention's kernel for
    sequences of unequal length (`varlen`) only pairs within a document are computed; else one mask serves all layers.
    """

    def __init__(self, documents: Tensor, varlen: bool, device: torch.device):
        self.mask = None if varlen else document_mask(documents.to(device))
        self.bounds = document_bounds(documents, device) if varlen else None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.bounds is None:
            return _sdpa(q, k, v, attn_mask=self.mask)
        from torch.nn.attention.varlen import varlen_attn

        rows, t, heads, _ = q.shape
        gqa = heads > k.shape[2]
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        # t bounds the longest document: reading the true length from the device would wait for it.
        out = varlen_attn(q, k, v, self.bounds, self.bounds, t, t, window_size=(-1, 0), enable_gqa=gqa)
        return out.unflatten(0, (rows, t))  # type: ignore[union-attr] # a tuple only with return_aux


def has_varlen_kernel(x: Tensor, head_dim: int) -> bool:
    """Whether FlashAttention's kernel can be used for x: half precision, an A100 or later, a supported head size."""
    if x.device.type != "cuda" or torch.cuda.get_device_properties(x.device).major < 8:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= 256


def document_mask(documents: Tensor) -> Tensor:
    """documents (B, T) -> bool (B, 1, T, T): whether the query token (third axis) attends to the key token (last)."""
    t = documents.shape[1]
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & torch.ones(t, t, dtype=torch.bool, device=documents.device).tril()


@torch.compiler.disable  # the number of documents depends on the data
def document_bounds(documents: Tensor, device: torch.device) -> Tensor:
    """documents (B, T) -> int32 (documents + 1,): where each begins among the B·T tokens, and where the last ends.

    Waits for the device that holds `documents`; they may stay on the CPU.
    """
    begins = torch.ones_like(documents, dtype=torch.bool)  # a row's first token begins a document
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    bounds = F.pad(begins.flatten().nonzero()[:, 0], (0, 1), value=documents.numel())
    bounds = bounds.int().to(device, non_blocking=True)
    # Another number of documents in the next batch is not to recompile the layers.
    torch._dynamo.maybe_mark_dynamic(bounds, 0)
    return bounds


class KVCache:
    """Keys and values of the tokens so far, one row a sequence, in memory allocated once.

    Rows may differ in length: row b holds tokens 0 … lengths[b]-1, so what a row computes does not depend on
    other rows. `both`: (layers, 2, B, K, capacity, D), keys and then values.
    """

    def __init__(
        self,
        config: Config,
        rows: int,
        capacity: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        shape = (config.n_layer, 2, rows, config.n_kv_head, capacity, config.head_dim)
        self.both = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.longest = 0  # max(lengths), known without reading from the device

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return self.both.shape[4]

    def keep(self, rows: Tensor) -> None:
        """Keep these rows (indices, int64), in this order; an index given twice duplicates its row."""
        self.both = self.both[:, :, rows]
        self.lengths = self.lengths[rows]
        self.longest = int(self.lengths.max())

    def slots(self) -> tuple[Tensor, ...]:
        """A view per layer, (B, capacity, 2, K, D): keys and values by row and position, to be written to."""
        return self.both.permute(0, 2, 4, 1, 3, 5).unbind()

    def stored(self, tokens: int) -> tuple[Tensor, ...]:
        """A view per layer, (2, B, K, tokens, D): keys and values of the first tokens of every row."""
        return self.both[..., :tokens, :].unbind()


class Prefill:
    """Prompts end to end in one row (1, T): each fills a row of an empty cache and attends to itself alone.

    Only attention pads them, those of similar length together; every matrix product takes the T tokens unpadded.
    """

    def __init__(self, cache: KVCache, first: int, lengths: Sequence[int]):
        """lengths: tokens of each prompt, the longest first; they fill the cache's rows from `first` on.

        Raises ValueError where the cache is too small.
        """
        device = cache.lengths.device
        self.cache, self.seen, self.rows = cache, max(lengths), slice(first, first + len(lengths))
        if self.seen > cache.capacity:
            raise ValueError(_too_long(cache, self.seen))
        self.lengths = torch.tensor(lengths, device=device)
        self.last = self.lengths.cumsum(0) - 1  # index, among the T tokens, of each prompt's last
        self.positions = torch.cat([torch.arange(n, device=device) for n in lengths])[None]
        self.groups = []
        row, token = first, 0
        for same in of_similar_length(lengths):
            rows, tokens = slice(row, row := row + len(same)), slice(token, token := token + sum(same))
            numbers = torch.arange(sum(same), device=device).split(same)
            indices = pad_sequence(
                list(numbers), batch_first=True, padding_value=-1
            )  # -1: any, none attends to it
            real = (indices.flatten() >= 0).nonzero()[:, 0]
            self.groups.append((rows, tokens, indices, real))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        for rows, tokens, indices, real in self.groups:
            q_, k_, v_ = (x[0, tokens][indices] for x in (q, k, v))  # (rows, longest, heads, D)
            for slot, new in zip(
                self.cache.both[layer, :, rows, :, : indices.shape[1]], (k_, v_), strict=True
            ):
                slot.copy_(new.transpose(1, 2))
            out[0, tokens] = causal(layer, q_, k_, v_).flatten(0, 1)[real]
        return out

    def done(self) -> None:
        """Update the cache's lengths, once every layer has stored the prompts."""
        self.cache.lengths[self.rows] = self.lengths
        self.cache.longest = max(self.cache.longest, self.seen)


def of_similar_length(lengths: Sequence[int]) -> list[list[int]]:
    """Lengths in descending order, divided into groups in which none is less than 0.8 times the first."""
    groups: list[list[int]] = []
    for length in lengths:
        if not groups or length < 0.8 * groups[-1][0]:
            groups.append([])
        groups[-1].append(length)
    return groups


@dataclass
class Cached:
    """One step of T new tokens in every row of a cache."""

    cache: KVCache
    rows: Tensor  # (B, 1): 0 … B-1
    positions: Tensor  # (B, T): position of each new token in its row
    mask: Tensor  # (B, 1, T, seen): what each new token attends to
    seen: int  # tokens of the longest row, the new ones included
    slots: tuple[Tensor, ...]  # per layer, as KVCache gives them
    stored: tuple[Tensor, ...]

    @classmethod
    def step(cls, cache: KVCache, t: int) -> Cached:
        """The step that adds t tokens to every row. Raises ValueError where the cache is too small."""
        seen = cache.longest + t
        if seen > cache.capacity:
            raise ValueError(_too_long(cache, seen))
        positions = cache.lengths[:, None] + torch.arange(t, device=cache.lengths.device)
        mask = torch.arange(seen, device=positions.device) <= positions[:, None, :, None]
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        return cls(cache, rows, positions, mask, seen, cache.slots(), cache.stored(seen))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, t, heads, d = q.shape
        self.slots[layer][self.rows, self.positions] = torch.stack((k, v), 2)
        groups = heads // k.shape[2]
        # The queries that share a key/value head are laid out along the time axis: no key is copied for them.
        q = q.view(b, t, -1, groups, d).permute(0, 2, 3, 1, 4).reshape(b, -1, groups * t, d)
        mask = self.mask if t == 1 else self.mask.repeat(1, 1, groups, 1)
        keys, values = self.stored[layer]
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return out.view(b, -1, groups, t, d).permute(0, 3, 1, 2, 4)

    def done(self) -> None:
        """Update the cache's lengths, once every layer has stored the new tokens."""
        self.cache.lengths += self.positions.shape[1]
        self.cache.longest = self.seen


def _too_long(cache: KVCache, seen: int) -> str:
    return f"The cache holds {cache.capacity} tokens per row and {seen} are needed. Reserve more."


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    gqa = q.shape[2] > k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal, enable_gqa=gqa)
    return out.transpose(1, 2)
