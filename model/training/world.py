"""This process among those that train together, and the settings of a process that results depend on."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import warnings
from dataclasses import dataclass

import torch

from core.errors import ConfigError
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
        """Wait until every rank has come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def device_memory(self) -> float:
        """Bytes of memory that this process may use: its GPU's, or its share of what this machine has free."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        import psutil

        return psutil.virtual_memory().available / self.local_size

    def share(self, rows: int) -> slice:
        """This rank's part of `rows` rows. Raises ConfigError where they do not divide evenly."""
        if rows % self.size:
            raise ConfigError(f"{rows} rows a step cannot be shared evenly by {self.size} processes.")
        part = rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


def init_distributed(config: TrainConfig) -> World:
    """Join the process group (torchrun's RANK, WORLD_SIZE …; a group of one without them).

    Also fixes what the bytes of a result depend on: thread count, the seed and, on a CPU, deterministic kernels, which
    on a GPU would cost attention much of its speed. To be called before the model is created, so that all ranks draw
    the same weights.
    """
    torch.set_num_threads(config.threads)
    # It costs time, and nothing reads such memory. (torch.utils.deterministic is an object that replaces the module.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
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
        else:  # a single process needs no port, so none can be in use already
            torch.distributed.init_process_group(
                backend, store=torch.distributed.HashStore(), rank=0, world_size=1
            )
    return World(rank, size, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def destroy_distributed() -> None:
    """Destroy the process group, through DeepSpeed where it is loaded: it keeps a reference to the group."""
    if torch.distributed.is_initialized():
        deepspeed = sys.modules.get("deepspeed")
        through = deepspeed.comm if deepspeed and deepspeed.comm.is_initialized() else torch.distributed
        through.destroy_process_group()


def keep_freed_memory() -> None:
    """Make this process's malloc keep freed memory: the next step asks for the same sizes again.

    glibc would return every large block to the kernel, which clears each page of it on reuse (docs/training-speed.md).
    Other C libraries are left as they are.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def engine_name(config: TrainConfig) -> str:
    """deepspeed or torch: the engine that config asks for, or torch where DeepSpeed is not installed."""
    installed = importlib.util.find_spec("deepspeed") is not None
    return "deepspeed" if config.engine == "deepspeed" and installed else "torch"
