"""Training speed, compared with a bare loop of the same model and with our peers.

    python -m benchmarks.training --shape demo --compare stemma,bare,zero1,zero2,zero3
    python -m benchmarks.training --shape small --compare stemma,qwen3,nanogpt --nanogpt PATH
    python -m benchmarks.training --gpu --nanogpt PATH --nanochat PATH      # all of GPU_RUNS, on one H100 or H200

The loops (--compare); PATH is a clone of karpathy/nanoGPT or karpathy/nanochat, whose code is run, never copied:
- stemma: `trainer.train` as every stage runs it, with DeepSpeed's engine at ZeRO 0; zero1, zero2, zero3: at these
  stages; torch: with the plain torch engine;
- bare: the same model in a hand-written loop: forward, backward, clip, fused AdamW, zero_grad;
- qwen3: `transformers`' Qwen3ForCausalLM of the same shape, with its own loss, in that bare loop;
- nanogpt: nanoGPT's model, its optimiser as it configures it, the steps of its loop; nanogpt_fused: with fused AdamW on
  a CPU too, where nanoGPT would not use it;
- nanochat: nanochat's model with its own optimiser (Muon and AdamW), in its loop's order, every layer with the whole
  context as in the other loops; its value embeddings add many parameters and hardly any work.

Each loop trains in a process of its own on the same random tokens, and they alternate every few steps (a turn). Printed
are the median over the turns, and as the ratio to the first loop the median of the ratios turn by turn, so that other
load on the machine affects all loops alike. CPU seconds count all threads and vary less on a busy machine. Except for
nanochat, shapes have the same layers, width, vocabulary and, apart from gains and positions, number of parameters:
grouped-query attention with half the key/value heads and a SwiGLU of 3 widths have 12 width² a layer, as GPT-2 has.
Compilation and the first steps are not timed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.peers.training_loops import LOOPS, SHAPES, Measurement, Setup, run
from model.training.meter import peak_flops
from model.training.train_config import TrainConfig

# What --gpu runs, each compiled and, unless it says otherwise, in bfloat16: 124M parameters beside the peers; 1.6B with
# ZeRO and activation checkpointing, of which one card's memory needs only the latter; both again in float8.
GPU_RUNS = (
    "--shape gpt2-124M --compare stemma,bare,nanogpt,nanochat --micro-batches 4",
    "--shape gpt2-1.6B --compare stemma --micro-batches 4 --checkpointing",
    "--shape gpt2-1.6B --compare zero1 --micro-batches 4 --checkpointing",
    "--shape gpt2-1.6B --compare stemma --micro-batches 4 --checkpointing --precision fp8",
    "--shape gpt2-124M --compare stemma --micro-batches 4 --precision fp8",
)


class LoopProcess:
    """A loop in a process of its own, as seen from this one."""

    def __init__(self, name: str, setup: Setup):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.turns: list[Measurement] = []
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run, args=(name, setup, theirs), name=name, daemon=True)
        self.process.start()
        theirs.close()

    def turn(self, steps: int) -> None:
        """Let it train so many steps. Raises RuntimeError if its process has ended."""
        try:
            self.pipe.send(steps)
            self.turns.append(self.pipe.recv())
        except (EOFError, OSError) as error:
            raise RuntimeError(f"{self.name} has failed; its own message is above.") from error

    def end(self) -> None:
        """End the loop and wait for its process."""
        self.pipe.send(0)
        self.process.join()


def compare(names: list[str], setup: Setup, turns: int, steps: int, warmup: int) -> list[LoopProcess]:
    """Let the loops alternate, in both orders."""
    loops = [LoopProcess(name, setup) for name in names]
    for loop in loops:
        loop.turn(warmup)
        loop.turns.clear()
    for number in range(turns):
        for loop in loops if number % 2 else reversed(loops):
            loop.turn(steps)
    for loop in loops:
        loop.end()
    return loops


def report(loops: list[LoopProcess], setup: Setup) -> None:
    """Print a table in Markdown."""
    tokens = setup.shape.tokens * setup.train.micro_batches
    flops = setup.shape.config.flops_per_token(setup.shape.seq_len)
    peak, where = 0.0, ""
    if setup.device.type == "cuda":
        # On a CPU the peak would have to be measured, which a busy machine does not allow.
        peak, where = peak_flops(setup.device, setup.train.half)
    print(f"{flops / 1e6:,.0f} MFLOPs a token, forward and backward. {where}\n")
    print(
        "| | parameters | tokens/s | MFU | GB | CPU-s a step | time beside the first | CPU-s beside the first |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for loop in loops:
        speed = tokens / statistics.median(turn.seconds for turn in loop.turns)
        cpu = statistics.median(turn.cpu_seconds for turn in loop.turns)
        pairs = list(zip(loop.turns, loops[0].turns, strict=True))
        wall_ratio = statistics.median(mine.seconds / first.seconds for mine, first in pairs)
        cpu_ratio = statistics.median(mine.cpu_seconds / first.cpu_seconds for mine, first in pairs)
        mfu = f"{100 * speed * flops / peak:.0f} %" if peak and loop.name != "nanochat" else ""
        last = loop.turns[-1]
        memory = f"{last.memory / 1e9:.1f}" if last.memory else ""
        print(
            f"| {loop.name} | {last.parameters} | {speed:,.0f} | {mfu} | {memory} | {cpu:.3f} | {wall_ratio:.3f} | "
            f"{cpu_ratio:.3f} |"
        )


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="demo", choices=SHAPES)
    parser.add_argument("--compare", default="stemma,bare", help=f"of {', '.join(LOOPS)}")
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
            parser.error(f"{peer} is compared: give --{peer} the path of its clone.")
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
    setup = Setup(shape, config, device, options.nanogpt, options.nanochat)
    report(compare(names, setup, options.turns, options.steps, options.warmup), setup)
    return 0


def run_on_gpu(options: argparse.Namespace) -> int:
    """Each of GPU_RUNS in a process of its own, with all of the card's memory; a failure does not stop the others."""
    common = ["--device", "cuda", "--precision", "bf16", "--compile", "--turns", str(options.turns)]
    peers = [f"--{peer}={path}" for peer in ("nanogpt", "nanochat") if (path := getattr(options, peer))]
    failed = []
    for arguments in GPU_RUNS:
        print(f"\n{arguments}\n", flush=True)
        command = [sys.executable, "-m", "benchmarks.training", *common, *peers, *arguments.split()]
        if subprocess.run(command).returncode:
            failed.append(arguments)
    print("".join(f"\nFailed: {arguments}" for arguments in failed))
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
