"""The memory that one training step needs beside weights, gradients and optimiser, counted before it runs.

One step is run on PyTorch's fake tensors, which have shapes and no storage, and every allocation and release on the way
is added up; so activations, checkpointing, precision and the loss' slices cost what they cost in the code as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections import Counter

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from model.network.config import Config
from model.network.loss import LOGITS_AT_ONCE
from model.network.transformer import Transformer
from model.training.engine import checkpoint_activations
from model.training.optimizer import even_out, orthogonalize, together
from model.training.train_config import TrainConfig

FP32 = 4  # bytes: weights, gradients and optimiser states are float32 at every stage
Phases = tuple[int, int]  # bytes at most: until the embedding's backward pass, and in it


def step_bytes(shape: Config, config: TrainConfig, rows: int, seq_len: int, ranks: int = 1) -> int:
    """The most bytes that one micro-batch of `rows` rows, or the update, holds beside weights, gradients and optimiser.

    Counted on two and three layers, and on few rows: every further layer and row adds the same to each phase.
    """
    few = -(-2 * LOGITS_AT_ONCE["cpu"] // (shape.vocab_size * seq_len))  # two slices of the loss

    def counted(n_layer: int, rows: int) -> Phases:
        small = dataclasses.replace(shape, n_layer=n_layer)
        kept = config.micro_batches > 1
        return _counted_bytes(small, config.half, config.activation_checkpointing, kept, rows, seq_len)

    def on_layers(rows: int) -> Phases:
        return _line(counted(2, rows), counted(3, rows), shape.n_layer - 2)

    phases = (
        on_layers(rows) if rows <= 2 * few else _line(on_layers(few), on_layers(2 * few), (rows - few) / few)
    )
    return max(*phases, _muon_bytes(shape, ranks) if config.optimizer == "muon" else 0)


def _line(first: Phases, second: Phases, further: float) -> Phases:
    """Where the line from the first point, so many steps of the way to the second, comes out."""
    blocks, embedding = (int(a + further * (b - a)) for a, b in zip(first, second, strict=True))
    return blocks, embedding


@functools.cache
def _counted_bytes(shape: Config, half: bool, twice: bool, kept: bool, rows: int, seq_len: int) -> Phases:
    """kept: gradients of an earlier micro-batch are there all the time; else they come as the backward pass goes."""
    with FakeTensorMode():
        model = Transformer(shape)
        if twice:
            checkpoint_activations(model)
        gradients = FP32 * model.num_params()  # counted apart
        if kept:
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
        ids = torch.zeros(rows, seq_len, dtype=torch.long)
        with _PeakBytes() as counted, torch.autocast("cpu", torch.bfloat16, enabled=half):

            def begin_phase(_module, _inputs, out) -> None:
                out.register_hook(lambda _gradient: counted.next_phase())

            model.embed_tokens.register_forward_hook(begin_phase)
            model(ids, ids, reduction="sum").backward()
    blocks, embedding = (peak if kept else peak - gradients for peak in counted.peaks)
    # Autograd adds the two gradients of a tied matrix in place, but not those of fake tensors.
    twofold = FP32 * shape.vocab_size * shape.d_model if shape.tie_embeddings else 0
    return blocks, embedding - twofold


@functools.cache
def _muon_bytes(shape: Config, ranks: int) -> int:
    """What Muon's largest batch of matrices takes in float32; a GPU, which computes in bfloat16, takes less."""
    with torch.device("meta"):
        alike = Counter(p.shape for p in Transformer(shape).layers.parameters() if p.ndim == 2)
    most = 0
    for size, count in alike.items():
        share = min(-(-count // ranks), together(size))
        with FakeTensorMode(), _PeakBytes() as counted:
            even_out(orthogonalize(torch.zeros(share, *size)), [torch.zeros(max(size)) for _ in range(share)])
        others = FP32 * (ranks - 1) * share * size.numel()  # other ranks' matrices in the batch
        most = max(most, counted.peaks[0] + others)
    return most


class _PeakBytes(TorchDispatchMode):
    """Adds up the storages that operations make, as long as somebody holds them. `peaks`: bytes at each phase's worst
    moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peaks = [0]
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def next_phase(self) -> None:
        self.peaks.append(self.now)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peaks[-1] = max(self.peaks[-1], self.now)
        weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, n_bytes: int) -> None:
        self.now -= n_bytes
