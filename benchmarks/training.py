"""How fast does training go, beside a bare loop of the same model and beside our peers?

    python -m benchmarks.training --shape demo --compare stemma,bare,zero1,zero2,zero3
    python -m benchmarks.training --shape small --compare stemma,qwen3,nanogpt --nanogpt PATH
    python -m benchmarks.training --gpu --nanogpt PATH --nanochat PATH      # all of GPU_RUNS, on one H100 or H200

Who takes part (--compare); PATH is a clone of karpathy/nanoGPT or karpathy/nanochat, whose code is run, never copied:
- stemma: `trainer.train` as every stage runs it, with DeepSpeed's engine at ZeRO 0; zero1, zero2, zero3: at these
  stages; torch: with the plain torch engine;
- bare: the same model in the loop that one would write by hand: forward, backward, clip, fused AdamW, zero_grad;
- qwen3: `transformers`' Qwen3ForCausalLM of the very same shape, and its own loss, in that bare loop;
- nanogpt: nanoGPT's model, its optimiser as it configures it, the steps of its loop; nanogpt_fused: with fused AdamW on
  a CPU too, where nanoGPT would not take it;
- nanochat: nanochat's model with its own optimiser (Muon and AdamW), in its loop's order, every layer with the whole
  context as all others here; it has value embeddings, which are many parameters more and hardly any work.

Each trains in a process of its own on the same random tokens, and they take turns of a few steps; what is
printed is the median over the turns, and the ratio to the first is the median of the ratios turn by turn, so that a
machine that is busy for a while is busy for all. CPU seconds count all threads and change less on a busy machine.
Shapes give all but nanochat the same layers, width, vocabulary and, but for gains and positions, as many parameters:
grouped-query attention with half the key/value heads and a SwiGLU of 3 widths have 12 width² a layer, like GPT-2's.
Compilation, and the first steps, are not in the times.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.data.batch import Batch
from model.network.config import Config
from model.network.transformer import Transformer
from model.run_log import RunLog
from model.training.meter import peak_flops
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
    **over,
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
    return Shape(Config(vocab_size, **(shape | over)), rows, seq_len, gpu_rows)


SHAPES = {
    "demo": gpt_shape(4, 128, 32, 1024, rows=4, seq_len=256),
    "small": gpt_shape(6, 256, 32, 50304, rows=4, seq_len=256),  # most of its work is the loss
    "27M": gpt_shape(8, 512, 64, 4096, rows=4, seq_len=256),
    "gpt2-124M": gpt_shape(12, 768, 64, 50304, rows=1, seq_len=1024),
    # GPT-2 XL's, whose 25 heads share 5 keys and values: a SwiGLU of 3.2 widths makes up for it.
    "gpt2-1.6B": gpt_shape(48, 1600, 64, 50304, rows=1, seq_len=1024, n_kv_head=5, d_ff=5120, gpu_rows=8),
}
# What --gpu runs, each compiled and, if it says nothing else, in bfloat16: 124M parameters beside the peers; 1.6B with
# ZeRO and activation checkpointing, of which one card's memory wants the latter only; both again in float8.
GPU_RUNS = (
    "--shape gpt2-124M --compare stemma,bare,nanogpt,nanochat --micro-batches 4",
    "--shape gpt2-1.6B --compare stemma --micro-batches 4 --checkpointing",
    "--shape gpt2-1.6B --compare zero1 --micro-batches 4 --checkpointing",
    "--shape gpt2-1.6B --compare stemma --micro-batches 4 --checkpointing --precision fp8",
    "--shape gpt2-124M --compare stemma --micro-batches 4 --precision fp8",
)


@dataclass(frozen=True)
class Setting:
    """What is alike for all who take part."""

    shape: Shape
    train: TrainConfig
    device: torch.device
    nanogpt: Path | None
    nanochat: Path | None

    def precision(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.train.half)

    def tokens(self, step: int) -> Tensor:
        """(rows · micro_batches, T + 1) random tokens of this step, on the CPU."""
        rows = self.shape.rows * self.train.micro_batches
        generator = torch.Generator().manual_seed(step)
        return torch.randint(
            self.shape.config.vocab_size, (rows, self.shape.seq_len + 1), generator=generator
        )


class Over(Exception):
    """Raised inside a loop to end it."""


class Turn(NamedTuple):
    """What a few steps took."""

    seconds: float  # a step
    cpu_seconds: float
    memory: float  # bytes of the GPU that were allocated at most, so far
    parameters: str


class Contestant:
    """In a process of its own: trains, and waits at the beginning of each step until it is given a turn."""

    def __init__(self, setting: Setting, pipe: Connection):
        self.setting, self.pipe = setting, pipe
        self.left = self.steps = self.number = 0
        self.parameters = ""

    def tokens(self, _step: int = 0) -> Tensor:
        """The next step's tokens, once it is our turn."""
        if not self.left:
            if self.steps:
                self.pipe.send(self._taken())
            self.left = self.steps = self.pipe.recv()
            self.began, self.cpu = time.perf_counter(), time.process_time()
        if not self.left:
            raise Over
        self.left -= 1
        self.number += 1
        return self.setting.tokens(self.number)

    def _taken(self) -> Turn:
        memory = 0.0
        if self.setting.device.type == "cuda":
            torch.cuda.synchronize()
            memory = torch.cuda.max_memory_allocated()
        wall, cpu = time.perf_counter() - self.began, time.process_time() - self.cpu
        return Turn(wall / self.steps, cpu / self.steps, memory, self.parameters)

    def has(self, model: nn.Module, embedding: nn.Parameter) -> None:
        total = sum(p.numel() for p in model.parameters())
        self.parameters = (
            f"{total / 1e6:.1f}M, {(total - embedding.numel()) / 1e6:.1f}M without the embedding"
        )


def stemma(zero_stage: int = 0, name: str = "deepspeed") -> Callable[[Contestant], None]:
    """The trainer with everything around it."""

    def loop(me: Contestant) -> None:
        config = replace(me.setting.train, zero_stage=zero_stage, engine=name)
        world = init_distributed(config)
        model = Transformer(me.setting.shape.config)
        me.has(model, model.embed_tokens.weight)

        def batch(step: int) -> Batch:
            ids = me.tokens(step)
            return Batch(ids[:, :-1], ids[:, 1:])

        with (
            tempfile.TemporaryDirectory() as work,
            RunLog(Path(work) / "metrics.jsonl", enabled=False) as log,
        ):
            train(model, config, batch, work=Path(work), log=log, world=world)

    return loop


def bare(me: Contestant) -> None:
    """The same model in a loop written by hand, with malloc as `init_distributed` sets it: not the engine's doing."""
    if me.setting.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    model = Transformer(me.setting.shape.config).to(me.setting.device)
    me.has(model, model.embed_tokens.weight)
    scale = 1 / (me.setting.shape.tokens * me.setting.train.micro_batches)
    by_hand(me, model, adamw(model, me), lambda x, y: model(x, y, reduction="sum") * scale)


def qwen3(me: Contestant) -> None:
    """transformers' model of our shape."""
    import transformers

    c = me.setting.shape.config
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
    model = transformers.Qwen3ForCausalLM(config).to(me.setting.device).train()
    me.has(model, model.model.embed_tokens.weight)
    parts = me.setting.train.micro_batches
    by_hand(me, model, adamw(model, me), lambda x, y: model(x, labels=y, shift_labels=y).loss / parts)


def nanogpt(fused: bool = False) -> Callable[[Contestant], None]:
    """nanoGPT's model and optimiser."""

    def loop(me: Contestant) -> None:
        GPT, GPTConfig = _from_file(me.setting.nanogpt / "model.py", "GPT", "GPTConfig")
        c, t = me.setting.shape.config, me.setting.train
        shape = GPTConfig(
            c.max_seq_len, c.vocab_size, c.n_layer, c.n_head, c.d_model, dropout=0.0, bias=False
        )
        model = GPT(shape).to(me.setting.device)
        me.has(model, model.transformer.wte.weight)
        if fused:
            optimizer = adamw(model, me)
        else:
            betas = (t.beta1, t.beta2)
            optimizer = model.configure_optimizers(t.weight_decay, t.lr, betas, me.setting.device.type)
        parts = me.setting.train.micro_batches
        by_hand(me, model, optimizer, lambda x, y: model(x, y)[1] / parts)

    return loop


def nanochat(me: Contestant) -> None:
    """nanochat's model and optimiser; the loss is read at every step, as in its loop."""
    os.environ["NANOCHAT_DTYPE"] = "bfloat16" if me.setting.train.half else "float32"
    sys.path.insert(0, str(me.setting.nanochat))
    from nanochat.gpt import GPT, GPTConfig

    c = me.setting.shape.config
    with torch.device("meta"):
        model = GPT(
            GPTConfig(me.setting.shape.seq_len, c.vocab_size, c.n_layer, c.n_head, c.n_head, c.d_model)
        )
    model.to_empty(device=me.setting.device)
    model.init_weights()
    me.has(model, model.transformer.wte.weight)
    parts = me.setting.train.micro_batches
    forward = torch.compile(model, dynamic=False) if me.setting.train.compile else model
    optimizer = model.setup_optimizer()
    while True:
        loss = None
        for x, y in _parts(me):
            loss = forward(x, y)
            (loss / parts).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        loss.item()


def by_hand(me: Contestant, model: nn.Module, optimizer, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Forward, backward, clip, step, clear: until it is over. `loss` gives what is to be added up and descended."""
    if me.setting.train.compile:
        model.compile(dynamic=False)
    while True:
        for x, y in _parts(me):
            with me.setting.precision():
                part = loss(x, y)
            part.backward()
        nn.utils.clip_grad_norm_(model.parameters(), me.setting.train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def adamw(model: nn.Module, me: Contestant) -> torch.optim.Optimizer:
    """Fused AdamW; matrices decay, gains do not."""
    t = me.setting.train
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": t.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=t.lr, betas=(t.beta1, t.beta2), fused=True)


def _parts(me: Contestant):
    """(inputs, targets) of each micro-batch of the next step, on the device."""
    for ids in me.tokens().split(me.setting.shape.rows):
        yield tuple(side.contiguous().to(me.setting.device) for side in (ids[:, :-1], ids[:, 1:]))


def _from_file(path: Path, *names: str) -> list:
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return [getattr(module, name) for name in names]


CONTESTANTS: dict[str, Callable[[Contestant], None]] = {
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


def run(name: str, setting: Setting, pipe: Connection) -> None:
    """What the process of a contestant does."""
    torch.set_num_threads(setting.train.threads)
    torch.set_float32_matmul_precision("high" if setting.device.type == "cuda" else "highest")
    if not setting.train.compile:  # the functions of nanochat's optimiser are decorated with torch.compile
        torch.compiler.set_stance("force_eager")
    with suppress(Over):
        CONTESTANTS[name](Contestant(setting, pipe))


class Seat:
    """A contestant as seen from outside."""

    def __init__(self, name: str, setting: Setting):
        context = multiprocessing.get_context("spawn")
        self.name, self.turns = name, []
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run, args=(name, setting, theirs), name=name, daemon=True)
        self.process.start()
        theirs.close()

    def turn(self, steps: int) -> None:
        """Have it train so many steps. Raises RuntimeError if its process has ended."""
        try:
            self.pipe.send(steps)
            self.turns.append(self.pipe.recv())
        except (EOFError, OSError) as error:
            raise RuntimeError(f"{self.name} has failed; its own message stands above.") from error

    def end(self) -> None:
        self.pipe.send(0)
        self.process.join()


def compare(names: list[str], setting: Setting, turns: int, steps: int, warmup: int) -> list[Seat]:
    """Let them take turns."""
    seats = [Seat(name, setting) for name in names]
    for seat in seats:
        seat.turn(warmup)
        seat.turns.clear()
    for number in range(turns):
        for seat in seats if number % 2 else reversed(seats):
            seat.turn(steps)
    for seat in seats:
        seat.end()
    return seats


def report(seats: list[Seat], setting: Setting) -> None:
    """A table in Markdown."""
    tokens = setting.shape.tokens * setting.train.micro_batches
    with torch.device("meta"):
        flops = Transformer(setting.shape.config).flops_per_token(setting.shape.seq_len)
    peak, where = 0.0, ""
    if setting.device.type == "cuda":
        # On a CPU the peak would have to be measured, and one that is busy has none.
        peak, where = peak_flops(setting.device, setting.train.half)
    print(f"{flops / 1e6:,.0f} MFLOPs a token, forward and backward. {where}\n")
    print(
        "| | parameters | tokens/s | MFU | GB | CPU-s a step | time beside the first | CPU-s beside the first |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for seat in seats:
        speed = tokens / statistics.median(turn.seconds for turn in seat.turns)
        cpu = statistics.median(turn.cpu_seconds for turn in seat.turns)
        pairs = list(zip(seat.turns, seats[0].turns, strict=True))
        wall_ratio = statistics.median(mine.seconds / first.seconds for mine, first in pairs)
        cpu_ratio = statistics.median(mine.cpu_seconds / first.cpu_seconds for mine, first in pairs)
        mfu = f"{100 * speed * flops / peak:.0f} %" if peak and seat.name != "nanochat" else ""
        last = seat.turns[-1]
        memory = f"{last.memory / 1e9:.1f}" if last.memory else ""
        print(
            f"| {seat.name} | {last.parameters} | {speed:,.0f} | {mfu} | {memory} | {cpu:.3f} | {wall_ratio:.3f} | "
            f"{cpu_ratio:.3f} |"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="demo", choices=SHAPES)
    parser.add_argument("--compare", default="stemma,bare", help=f"of {', '.join(CONTESTANTS)}")
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--nanochat", type=Path)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp8"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again in backward")
    parser.add_argument("--rows", type=int, help="a micro-batch; the shape has a default for a CPU")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="a turn")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--gpu", action="store_true", help="run GPU_RUNS one after the other, nothing else")
    options = parser.parse_args(argv)
    if options.gpu:
        return run_on_gpu(options)
    names = options.compare.split(",")
    for peer in ("nanogpt", "nanochat"):
        if any(name.startswith(peer) for name in names) and not getattr(options, peer):
            parser.error(f"{peer} takes part: give --{peer} the path of its clone.")
    config = TrainConfig(
        steps=10**9,
        lr=1e-4,
        schedule="constant",
        precision=options.precision,
        compile=options.compile,
        micro_batches=options.micro_batches,
        activation_checkpointing=options.checkpointing,
        threads=options.threads,
        log_every=5,
        checkpoint_every=10**9,
    )
    shape = SHAPES[options.shape]
    device = torch.device(options.device)
    shape = replace(shape, rows=options.rows or (shape.rows if device.type == "cpu" else shape.gpu_rows))
    print(
        f"{options.shape}: {shape.config.n_layer} layers, {shape.config.d_model} wide, vocabulary "
        f"{shape.config.vocab_size:,}; {shape.rows} × {shape.seq_len} tokens, {options.micro_batches} micro-batches; "
        f"{options.precision}, {'compiled' if options.compile else 'eager'}; {_machine(device, options.threads)}"
    )
    setting = Setting(shape, config, device, options.nanogpt, options.nanochat)
    report(compare(names, setting, options.turns, options.steps, options.warmup), setting)
    return 0


def run_on_gpu(options: argparse.Namespace) -> int:
    """Each of GPU_RUNS in a process of its own: each has all of the card's memory, and one that fails stops none."""
    common = ["--device", "cuda", "--precision", "bf16", "--compile", "--turns", str(options.turns)]
    peers = [f"--{peer}={path}" for peer in ("nanogpt", "nanochat") if (path := getattr(options, peer))]
    failed = []
    for run in GPU_RUNS:
        print(f"\n{run}\n", flush=True)
        command = [sys.executable, "-m", "benchmarks.training", *common, *peers, *run.split()]
        if subprocess.run(command).returncode:
            failed.append(run)
    print("".join(f"\nFailed: {run}" for run in failed))
    return bool(failed)


def _machine(device: torch.device, threads: int) -> str:
    import deepspeed
    import transformers

    place = torch.cuda.get_device_name() if device.type == "cuda" else f"{_processor()}, {threads} threads"
    versions = f"torch {torch.__version__}, deepspeed {deepspeed.__version__}"
    return f"{place}, {versions}, transformers {transformers.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
