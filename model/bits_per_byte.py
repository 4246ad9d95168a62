"""Bits per byte of text under a model: the measure of base models that does not depend on the tokenizer.

Each document is scored from an empty context that holds only the separator, in windows of seq_len predictions that do
not overlap and see only themselves (a window's first input is the last token of the previous window). The bits of all
its tokens and of the separator that ends it are summed over the documents and divided by their length as UTF-8. So the
number is comparable with a compressor's, and for long documents it is slightly too high, never too low.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from model.data.config import HELD_OUT
from model.network.config import IGNORE
from model.training.world import World

if TYPE_CHECKING:
    from model.data.loader import TokenData

EVAL_BYTES = 2_000_000  # of held-out text at most; more would not change the second digit
Tokens = npt.NDArray[np.integer]


def held_out_bpb(model: nn.Module, data: TokenData, seq_len: int, world: World) -> float:
    """Bits per byte of the held-out documents; NaN where there are none."""
    documents, n_bytes = [], 0
    for number in data.documents(HELD_OUT):
        if n_bytes and n_bytes + data.n_bytes[number] > EVAL_BYTES:
            break
        documents.append(data.tokens(number))
        n_bytes += int(data.n_bytes[number])
    return bits_per_byte(model, documents, n_bytes, data.separator, seq_len, world)


@torch.no_grad()
def bits_per_byte(
    model: nn.Module,
    documents: Sequence[Tokens],
    n_bytes: int,
    separator: int,
    seq_len: int,
    world: World = World(),  # noqa: B008 - frozen
    rows: int = 32,
) -> float:
    """As the module's docstring defines it. documents: token ids, each with the separator at its end; n_bytes: of
    all documents as UTF-8; rows: windows in one forward pass."""
    windows = [w for document in documents for w in _windows(document, separator, seq_len)]
    if not n_bytes:
        return math.nan
    windows.sort(key=len)  # similar lengths in one batch, so that there is little padding
    batches = [windows[i : i + rows] for i in range(0, len(windows), rows)]
    while len(batches) % world.size:
        batches.append([])  # every process takes part in every pass: ZeRO 3 gathers weights in it
    nats = 0.0
    for batch in batches[world.rank :: world.size]:
        inputs, targets = _pad(batch or [np.array([separator, separator])], separator, empty=not batch)
        losses = model(inputs.to(world.device), targets.to(world.device))
        nats += float(losses.double().sum())
    (nats,) = world.sum(nats)
    return nats / math.log(2) / n_bytes


def _windows(document: Tokens, separator: int, seq_len: int) -> list[Tokens]:
    """Windows of up to seq_len + 1 tokens; each begins with the token before its first prediction."""
    stream = np.concatenate([[separator], document.astype(np.int64)])
    return [stream[i : i + seq_len + 1] for i in range(0, len(document), seq_len)]


def _pad(windows: list[Tokens], separator: int, empty: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, targets), each (windows, longest - 1), of windows of unequal length; padding predicts nothing."""
    longest = max(map(len, windows)) - 1
    inputs = torch.full((len(windows), longest), separator)
    targets = torch.full((len(windows), longest), IGNORE)
    for i, window in enumerate(map(torch.from_numpy, windows)):
        inputs[i, : len(window) - 1] = window[:-1]
        if not empty:
            targets[i, : len(window) - 1] = window[1:]
    return inputs, targets
