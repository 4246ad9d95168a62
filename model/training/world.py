"""This process among those that train together, and what the bytes of a result depend on in it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import warnings
from dataclasses import dataclass

import torch

from model.run_log import ConfigError
from model.training.train_config import TrainConfig

CPU = torch.device("cpu")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    local_size: int = 1  # of them on this machine

    def sum(self, *numbers: float) -> list[float]:
        """Each number summed over all ranks, in float64."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def barrier(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()

    def share(self, rows: int) -> slice:
        """This rank's part of `rows` rows; they must divide evenly."""
        if rows % self.size:
            raise ConfigError(f"{rows} rows a step cannot be shared evenly by {self.size} processes.")
        part = rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


def join(config: TrainConfig) -> World:
    """Take this process's place among the others (torchrun's RANK, WORLD_SIZE …; alone without them).

    Fixes what the bytes of a result depend on: thread count, the seed and, on a CPU, deterministic kernels, which on a
    GPU would cost attention much of its speed. Call it before the model is made, so that all ranks draw the same
    weights.
    """
    torch.set_num_threads(config.threads)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and nothing reads such memory
    torch.manual_seed(config.seed)
    # ZeRO and Muon call collectives that torch is about to rename, in every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    use_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_gpu else torch.device("cpu")
    torch.use_deterministic_algorithms(not use_gpu, warn_only=True)
    if use_gpu:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 for what is not bfloat16
    else:
        keep_freed_memory()
    if (size > 1 or engine_name(config) == "deepspeed") and not torch.distributed.is_initialized():
        backend = "nccl" if use_gpu else "gloo"
        if size > 1:
            torch.distributed.init_process_group(backend)
        else:  # one process needs no port, and so cannot find it taken
            torch.distributed.init_process_group(
                backend, store=torch.distributed.HashStore(), rank=0, world_size=1
            )
    return World(rank, size, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def keep_freed_memory() -> None:
    """Have this process's malloc keep what is freed: the next step asks for the same sizes again.

    glibc would give every large block back, and the kernel clear each page of it anew (docs/training-speed.md).
    Other C libraries are left as they are.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def leave() -> None:
    """Undo `join`'s process group, through DeepSpeed where it is loaded: it would remember the group."""
    if torch.distributed.is_initialized():
        deepspeed = sys.modules.get("deepspeed")
        through = deepspeed.comm if deepspeed and deepspeed.comm.is_initialized() else torch.distributed
        through.destroy_process_group()


def engine_name(config: TrainConfig) -> str:
    """deepspeed or torch: what config.engine asks for, as far as it is installed."""
    installed = importlib.util.find_spec("deepspeed") is not None
    return "deepspeed" if config.engine == "deepspeed" and installed else "torch"
