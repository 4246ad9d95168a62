"""What a training will take, worked out before its first step: parameters, operations, memory, time.

Notable:
- memory is counted, not guessed: one step is run on PyTorch's fake tensors, which have shapes and no storage, and
  every allocation and release on the way is added up; so activations, checkpointing, precision and the loss' slices
  cost what they cost in the code as it is. What ZeRO shares out is then divided (arXiv 1910.02054, section 3);
- time is measured where the training will run (`trial`), or, for hardware that is elsewhere, operations divided by
  the published peak and a share of it that comparable trainers reach;
- `fitted` picks the lowest ZeRO stage that fits, because each stage talks more than the one before.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import statistics
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from core.errors import ConfigError
from model.network.config import Config
from model.network.loss import LOGITS_AT_ONCE
from model.network.transformer import Transformer
from model.training.engine import Engine, checkpoint_activations
from model.training.open_engine import open_engine
from model.training.optimizer import even_out, orthogonalize, together
from model.training.train_config import TrainConfig
from model.training.world import World

FP32 = 4  # bytes: weights, gradients and optimiser states are float32 at every stage
LEAST_MICRO_BATCH = 4096  # tokens; smaller parts of a step leave a GPU idle between kernels
TRIALS, TRIAL_SECONDS = 3, 2.0  # steps timed at least, after one that is not, and for how long at least
Phases = tuple[int, int]  # bytes at most: until the embedding's backward pass, and in it
USABLE = 0.9  # of the memory; the rest is for the allocator, NCCL and the kernels' own work space


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the step's highest point."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # and everything else that lives within a step

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Estimate:
    """A training in numbers. seconds: None where nothing is known about the hardware."""

    parameters: int
    flops_per_token: int
    tokens: int
    steps: int
    memory: Memory
    seconds: float | None = None

    @property
    def flops(self) -> float:
        return float(self.flops_per_token) * self.tokens

    def sentence(self) -> str:
        """All of it in one line for a person."""
        took = f", {duration(self.seconds)}" if self.seconds is not None else ""
        return (
            f"{self.parameters:,} parameters, {self.steps:,} steps, {self.tokens:,} tokens, {self.flops:.2g} FLOPs, "
            f"{size(self.memory.total)} of memory a process{took}"
        )


def estimate(shape: Config, config: TrainConfig, rows: int, seq_len: int, ranks: int = 1) -> Estimate:
    """The numbers of a training but for its time. rows: rows a step of seq_len tokens, over all ranks."""
    with torch.device("meta"):
        model = Transformer(shape)
    parameters = model.num_params()
    states = optimizer_bytes(model, config)
    part = max(1, rows // ranks // config.micro_batches)
    return Estimate(
        parameters=parameters,
        flops_per_token=model.flops_per_token(seq_len),
        tokens=config.steps * rows * seq_len,
        steps=config.steps,
        memory=sharded(
            FP32 * parameters,
            states,
            working_bytes(shape, config, part, seq_len, ranks),
            config.zero_stage,
            ranks,
        ),
    )


def sharded(weights: int, states: int, working: int, zero_stage: int, ranks: int) -> Memory:
    """What one of `ranks` devices holds: ZeRO 1 shares out the optimiser, 2 the gradients too, 3 the weights too."""
    return Memory(
        weights=weights // ranks if zero_stage == 3 else weights,
        gradients=weights // ranks if zero_stage >= 2 else weights,
        optimizer=states // ranks if zero_stage >= 1 else states,
        activations=working,
    )


def optimizer_bytes(model: nn.Module, config: TrainConfig) -> int:
    """Two moments a parameter for AdamW; Muon keeps one for the matrices of the blocks."""
    matrices = sum(p.numel() for p in model.layers.parameters() if p.ndim == 2)
    single = matrices if config.optimizer == "muon" else 0
    return FP32 * (2 * model.num_params() - single)


def working_bytes(shape: Config, config: TrainConfig, rows: int, seq_len: int, ranks: int = 1) -> int:
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

    def __init__(self):
        super().__init__()
        self.now, self.peaks = 0, [0]
        self._known: weakref.WeakSet = weakref.WeakSet()

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


def fitted(
    shape: Config, config: TrainConfig, rows: int, seq_len: int, ranks: int, memory: float
) -> TrainConfig:
    """config with the lowest ZeRO stage, micro-batches and activation checkpointing that fit into `memory` bytes.

    Tried in the order of what they cost: first more micro-batches (nothing, down to 4,096 tokens each), then the next
    stage (communication), at last computing activations twice (a third more work). Raises ConfigError when the
    last of it is still too much.
    """
    with torch.device("meta"):
        model = Transformer(shape)
    weights, states = FP32 * model.num_params(), optimizer_bytes(model, config)
    rows //= ranks
    for twice in (False, True):
        tried = dataclasses.replace(config, activation_checkpointing=twice)
        working = {
            n: working_bytes(shape, tried, rows // n, seq_len, ranks) for n in _micro_batches(rows, seq_len)
        }
        for stage in range(4 if ranks > 1 else 1):
            for parts, bytes_ in working.items():
                least = sharded(weights, states, bytes_, stage, ranks).total
                if least <= USABLE * memory:
                    return dataclasses.replace(tried, zero_stage=stage, micro_batches=parts)
    raise ConfigError(
        f"A model of {model.num_params():,} parameters does not fit: it takes at least {size(least)} on each of "
        f"{ranks} devices, and one has {size(memory)}. Use more devices or a smaller depth, or offload the optimiser "
        "(offload: optimizer)."
    )


def _micro_batches(rows: int, seq_len: int) -> list[int]:
    """Numbers of parts, 1, 2, 4 … that divide the rows and leave each part large enough to be worth a pass."""
    most = max(1, rows * seq_len // LEAST_MICRO_BATCH)
    return [2**i for i in range(most.bit_length()) if 2**i <= most and rows % 2**i == 0]


def trial(model: Transformer, config: TrainConfig, rows: int, seq_len: int, world: World) -> float:
    """Seconds a step takes here, tried out on a copy of the model and on tokens that mean nothing.

    rows: of a step, over all ranks. One process tries, so what ranks say to each other is not in it.
    """
    alone = dataclasses.replace(config, engine="torch", zero_stage=0)
    engine = open_engine(copy.deepcopy(model), alone, World(device=world.device))
    part = max(1, rows // world.size // config.micro_batches)
    ids = torch.arange(part * seq_len, device=world.device).view(part, seq_len) % model.config.vocab_size
    passes, updates, until = [], [], time.perf_counter() + TRIAL_SECONDS
    while len(passes) <= TRIALS or time.perf_counter() < until:
        passes.append(_seconds(world.device, lambda: _one_pass(engine, ids)))
        updates.append(_seconds(world.device, lambda: engine.step(config.lr)))
    # The first one loads kernels, and compiles.
    return config.micro_batches * statistics.median(passes[1:]) + statistics.median(updates[1:])


def _one_pass(engine: Engine, ids: torch.Tensor) -> None:
    with engine.autocast():
        loss = engine.model(ids, ids, reduction="sum")
    engine.backward(loss, ids.numel())


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def device_memory(device: torch.device, processes: int = 1) -> float:
    """Bytes that one of `processes` on this machine may count on."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    return psutil.virtual_memory().available / processes


def size(n_bytes: float) -> str:
    """1,500,000,000 -> 1.5 GB."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """4,000 -> 1 h 7 min."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 2:
        return f"{seconds:.0f} s"
    if hours < 2:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if days < 2 else f"{days:.1f} days"
