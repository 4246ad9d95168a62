"""The replayed memory of a step is that of PyTorch's own operations on fake tensors, to the byte."""

import itertools
import math
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from model.network.config import LOGITS_AT_ONCE, Config
from model.network.transformer import Transformer
from model.training.engine import checkpoint_activations
from model.training.optimizer import normalise_neurons, orthogonalize
from model.training.step_memory import FP32, _muon_bytes, pass_bytes


class PeakBytes(TorchDispatchMode):
    """Adds up the storages that operations make, for as long as they live; `peaks`: the most bytes in each phase."""

    def __init__(self):
        super().__init__()
        self.now, self.peaks = 0, [0]
        self._known = weakref.WeakSet()

    def next_phase(self):
        self.peaks.append(self.now)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage):
        if storage not in self._known:
            self._known.add(storage)
            self.now += storage.nbytes()
            self.peaks[-1] = max(self.peaks[-1], self.now)
            weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, n_bytes):
        self.now -= n_bytes


def counted(shape: Config, half: bool, checkpointing: bool, accumulating: bool, rows: int, seq_len: int):
    """pass_bytes of a pass that PyTorch runs; fake tensors have shapes and no storage."""
    with FakeTensorMode():
        model = Transformer(shape)
        if checkpointing:
            checkpoint_activations(model)
        if accumulating:
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
        ids = torch.zeros(rows, seq_len, dtype=torch.long)
        with PeakBytes() as seen, torch.autocast("cpu", torch.bfloat16, enabled=half):

            def begin_phase(_module, _inputs, out):
                out.register_hook(lambda _gradient: seen.next_phase())

            model.embed_tokens.register_forward_hook(begin_phase)
            model(ids, ids, reduction="sum").backward()
    gradients = 0 if accumulating else FP32 * model.num_params()
    blocks, embedding = (peak - gradients for peak in seen.peaks)
    # Autograd adds the two gradients of a tied matrix in place, but not those of fake tensors.
    return blocks, embedding - FP32 * shape.vocab_size * shape.d_model * shape.tie_embeddings


WIDE, NARROW = (Config(1000, 3, 4, 2, 16, 48, 96, 64), Config(5000, 2, 6, 6, 8, 16, 40, 64, qk_norm=False))


@pytest.mark.parametrize(
    ("half", "checkpointing", "accumulating"), itertools.product([False, True], repeat=3)
)
def test_a_pass_takes_what_pytorch_allocates(half, checkpointing, accumulating, monkeypatch):
    untied = Config(100, 2, 4, 1, 32, 64, 256, 64, tie_embeddings=False)
    for shape, rows, seq_len, chunk in (
        (WIDE, 2, 64, 2**25),
        (NARROW, 5, 16, 30 * 5000),
        (untied, 2, 64, 3000),
    ):
        monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", chunk)
        settings = (half, checkpointing, accumulating, rows, seq_len)
        assert pass_bytes(shape, *settings) == counted(shape, *settings)


@pytest.mark.parametrize("layers", [2, 12])
def test_muon_takes_what_pytorch_allocates(layers):
    shape = Config(100, layers, 4, 2, 16, 48, 96, 64)
    counts = {
        (64, 48): layers,
        (32, 48): 2 * layers,
        (48, 64): layers,
        (96, 48): 2 * layers,
        (48, 96): layers,
    }
    for ranks in (1, 3):
        most = 0
        for size, count in counts.items():
            share = -(-count // ranks)
            with FakeTensorMode(), PeakBytes() as seen:
                squares = [torch.zeros(max(size)) for _ in range(share)]
                normalise_neurons(orthogonalize(torch.zeros(share, *size)), squares)
            alone = seen.peaks[0] - FP32 * share * max(size)  # the squares are part of the optimiser's state
            most = max(most, alone + FP32 * (ranks - 1) * share * math.prod(size))
        assert _muon_bytes(shape, ranks) == most
