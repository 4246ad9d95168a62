"""The training loops that benchmarks/training.py compares: ours, one written by hand, and those of our peers.

Each loop runs in a process of its own and asks its StepFeed for the tokens of every step, which waits until the loop
is given a turn.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.data.batch import Batch
from model.network.config import Config
from model.network.transformer import Transformer
from model.run_log import RunLog
from model.training.train_config import TrainConfig
from model.training.trainer import train
from model.training.world import init_distributed, keep_freed_memory


@dataclass(frozen=True)
class Shape:
    """A model and the batch that it is trained on."""

    config: Config
    rows: int  # a micro-batch
    seq_len: int
    gpu_rows: int = 32

    @property
    def tokens(self) -> int:
        return self.rows * self.seq_len


def gpt_shape(
    layers: int,
    width: int,
    head_dim: int,
    vocab_size: int,
    rows: int,
    seq_len: int,
    gpu_rows: int = 32,
    **overrides: int,
) -> Shape:
    """As many parameters a layer as GPT-2's block: 12 width²."""
    heads = width // head_dim
    shape = {
        "n_layer": layers,
        "d_model": width,
        "n_head": heads,
        "n_kv_head": heads // 2,
        "head_dim": head_dim,
    }
    shape |= {"d_ff": 3 * width, "max_seq_len": 1024}
    return Shape(Config(vocab_size, **(shape | overrides)), rows, seq_len, gpu_rows)


SHAPES = {
    "demo": gpt_shape(4, 128, 32, 1024, rows=4, seq_len=256),
    "small": gpt_shape(6, 256, 32, 50304, rows=4, seq_len=256),  # most of its computation is the loss
    "27M": gpt_shape(8, 512, 64, 4096, rows=4, seq_len=256),
    "gpt2-124M": gpt_shape(12, 768, 64, 50304, rows=1, seq_len=1024),
    # GPT-2 XL's, whose 25 heads share 5 key/value heads: a SwiGLU of 3.2 widths compensates for it.
    "gpt2-1.6B": gpt_shape(48, 1600, 64, 50304, rows=1, seq_len=1024, n_kv_head=5, d_ff=5120, gpu_rows=8),
}


@dataclass(frozen=True)
class Setup:
    """What all loops have in common."""

    shape: Shape
    train: TrainConfig
    device: torch.device
    nanogpt: Path | None
    nanochat: Path | None

    def precision(self) -> AbstractContextManager[Any]:
        """The context in which a loop written by hand computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.train.half)

    def tokens(self, step: int) -> Tensor:
        """(rows · micro_batches, T + 1) random tokens of this step, on the CPU."""
        rows = self.shape.rows * self.train.micro_batches
        generator = torch.Generator().manual_seed(step)
        return torch.randint(
            self.shape.config.vocab_size, (rows, self.shape.seq_len + 1), generator=generator
        )


class Finished(Exception):
    """Raised inside a loop to end it."""


class Measurement(NamedTuple):
    """What a few steps took."""

    seconds: float  # a step
    cpu_seconds: float
    memory: float  # bytes of the GPU that were allocated at most, so far
    parameters: str


class StepFeed:
    """Gives a loop its tokens, and waits with each step until the loop is given a turn."""

    def __init__(self, setup: Setup, pipe: Connection):
        self.setup, self.pipe = setup, pipe
        self.left = self.steps = self.number = 0
        self.parameters = ""

    def tokens(self, _step: int = 0) -> Tensor:
        """The next step's tokens, when it is the loop's turn. Raises Finished at the end."""
        if not self.left:
            if self.steps:
                self.pipe.send(self._measured())
            self.left = self.steps = self.pipe.recv()
            self.began, self.cpu = time.perf_counter(), time.process_time()
        if not self.left:
            raise Finished
        self.left -= 1
        self.number += 1
        return self.setup.tokens(self.number)

    def _measured(self) -> Measurement:
        memory = 0.0
        if self.setup.device.type == "cuda":
            torch.cuda.synchronize()
            memory = torch.cuda.max_memory_allocated()
        wall, cpu = time.perf_counter() - self.began, time.process_time() - self.cpu
        return Measurement(wall / self.steps, cpu / self.steps, memory, self.parameters)

    def describe(self, model: nn.Module, embedding: nn.Parameter) -> None:
        """Record the size of the model."""
        total = sum(p.numel() for p in model.parameters())
        self.parameters = (
            f"{total / 1e6:.1f}M, {(total - embedding.numel()) / 1e6:.1f}M without the embedding"
        )


def stemma(zero_stage: int = 0, name: str = "deepspeed") -> Callable[[StepFeed], None]:
    """Our trainer with everything around it."""

    def loop(feed: StepFeed) -> None:
        config = replace(feed.setup.train, zero_stage=zero_stage, engine=name)
        world = init_distributed(config)
        model = Transformer(feed.setup.shape.config)
        feed.describe(model, model.embed_tokens.weight)

        def batch(step: int) -> Batch:
            ids = feed.tokens(step)
            return Batch(ids[:, :-1], ids[:, 1:])

        with (
            tempfile.TemporaryDirectory() as work,
            RunLog(Path(work) / "metrics.jsonl", enabled=False) as log,
        ):
            train(model, config, batch, work=Path(work), log=log, world=world)

    return loop


def bare(feed: StepFeed) -> None:
    """The same model in a hand-written loop, with malloc as `init_distributed` sets it, which any loop could do."""
    if feed.setup.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    model = Transformer(feed.setup.shape.config).to(feed.setup.device)
    feed.describe(model, model.embed_tokens.weight)
    scale = 1 / (feed.setup.shape.tokens * feed.setup.train.micro_batches)
    by_hand(feed, model, adamw(model, feed), lambda x, y: model(x, y, reduction="sum") * scale)


def qwen3(feed: StepFeed) -> None:
    """transformers' model of our shape."""
    import transformers

    c = feed.setup.shape.config
    config = transformers.Qwen3Config(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head,
        num_key_value_heads=c.n_kv_head,
        head_dim=c.head_dim,
        max_position_embeddings=c.max_seq_len,
        tie_word_embeddings=c.tie_embeddings,
        use_cache=False,
    )
    model = transformers.Qwen3ForCausalLM(config).to(feed.setup.device).train()
    feed.describe(model, model.model.embed_tokens.weight)
    parts = feed.setup.train.micro_batches
    by_hand(feed, model, adamw(model, feed), lambda x, y: model(x, labels=y, shift_labels=y).loss / parts)


def nanogpt(fused: bool = False) -> Callable[[StepFeed], None]:
    """nanoGPT's model and optimiser."""

    def loop(feed: StepFeed) -> None:
        GPT, GPTConfig = _from_file(feed.setup.nanogpt / "model.py", "GPT", "GPTConfig")
        c, t = feed.setup.shape.config, feed.setup.train
        shape = GPTConfig(
            c.max_seq_len, c.vocab_size, c.n_layer, c.n_head, c.d_model, dropout=0.0, bias=False
        )
        model = GPT(shape).to(feed.setup.device)
        feed.describe(model, model.transformer.wte.weight)
        if fused:
            optimizer = adamw(model, feed)
        else:
            betas = (t.beta1, t.beta2)
            optimizer = model.configure_optimizers(t.weight_decay, t.lr, betas, feed.setup.device.type)
        parts = feed.setup.train.micro_batches
        by_hand(feed, model, optimizer, lambda x, y: model(x, y)[1] / parts)

    return loop


def nanochat(feed: StepFeed) -> None:
    """nanochat's model and optimiser; the loss is read at every step, as in its loop."""
    os.environ["NANOCHAT_DTYPE"] = "bfloat16" if feed.setup.train.half else "float32"
    sys.path.insert(0, str(feed.setup.nanochat))
    from nanochat.gpt import GPT, GPTConfig

    c = feed.setup.shape.config
    with torch.device("meta"):
        model = GPT(
            GPTConfig(feed.setup.shape.seq_len, c.vocab_size, c.n_layer, c.n_head, c.n_head, c.d_model)
        )
    model.to_empty(device=feed.setup.device)
    model.init_weights()
    feed.describe(model, model.transformer.wte.weight)
    parts = feed.setup.train.micro_batches
    forward = torch.compile(model, dynamic=False) if feed.setup.train.compile else model
    optimizer = model.setup_optimizer()
    while True:
        loss = None
        for x, y in _parts(feed):
            loss = forward(x, y)
            (loss / parts).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        loss.item()


def by_hand(
    feed: StepFeed,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Forward, backward, clip, step, zero_grad, to the end. loss(inputs, targets): a micro-batch's share of it."""
    if feed.setup.train.compile:
        model.compile(dynamic=False)
    while True:
        for x, y in _parts(feed):
            with feed.setup.precision():
                part = loss(x, y)
            part.backward()
        nn.utils.clip_grad_norm_(model.parameters(), feed.setup.train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def adamw(model: nn.Module, feed: StepFeed) -> torch.optim.Optimizer:
    """Fused AdamW; matrices decay, gains do not."""
    t = feed.setup.train
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": t.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=t.lr, betas=(t.beta1, t.beta2), fused=True)


def _parts(feed: StepFeed) -> Iterator[tuple[Tensor, ...]]:
    """(inputs, targets) of each micro-batch of the next step, on the device."""
    for ids in feed.tokens().split(feed.setup.shape.rows):
        yield tuple(side.contiguous().to(feed.setup.device) for side in (ids[:, :-1], ids[:, 1:]))


def _from_file(path: Path, *names: str) -> list[Any]:
    """Names from a Python file outside the project."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return [getattr(module, name) for name in names]


LOOPS: dict[str, Callable[[StepFeed], None]] = {
    "stemma": stemma(),
    "zero1": stemma(1),
    "zero2": stemma(2),
    "zero3": stemma(3),
    "torch": stemma(name="torch"),
    "bare": bare,
    "qwen3": qwen3,
    "nanogpt": nanogpt(),
    "nanogpt_fused": nanogpt(fused=True),
    "nanochat": nanochat,
}


def run(name: str, setup: Setup, pipe: Connection) -> None:
    """What the process of a loop does."""
    torch.set_num_threads(setup.train.threads)
    torch.set_float32_matmul_precision("high" if setup.device.type == "cuda" else "highest")
    if not setup.train.compile:  # the functions of nanochat's optimiser are decorated with torch.compile
        torch.compiler.set_stance("force_eager")
    with suppress(Finished):
        LOOPS[name](StepFeed(setup, pipe))
