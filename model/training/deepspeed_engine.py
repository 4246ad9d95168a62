"""The engine that trains with DeepSpeed's ZeRO. The only file that imports DeepSpeed.

Notable: the optimiser is ours at every stage, because DeepSpeed's own ones compile C++ at first use, and its Muon takes
different steps at different stages.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from model.training.engine import Engine, place_whole, share_of_whole
from model.training.optimizer import Optimizer, param_groups, set_lr
from model.training.snapshot import Part
from model.training.train_config import TrainConfig
from model.training.world import World


class DeepSpeedEngine(Engine):
    """DeepSpeed ZeRO. Stage 0 clips in our optimiser; stages 1 to 3, where that sees only shards, in DeepSpeed.

    A single process has nothing to shard, so that without offload every stage of it is stage 0.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, world: World):
        super().__init__(config, world)
        self._deepspeed: Any = import_deepspeed(world)
        self.stage = config.zero_stage if world.size > 1 or config.offload != "none" else 0
        self.module = model
        self.optimizer = Optimizer(param_groups(model, config), config, world, sharded=self.stage > 0)
        if self.stage == 3:  # a block's weights are gathered together: one hook, not one for each module
            blocks = model.get_submodule("layers").children()
            self._deepspeed.utils.set_z3_leaf_modules(model, [type(next(blocks))])
        settings = _settings(config, self.stage, world)
        with _quiet():
            self._engine, self._zero, _, _ = self._deepspeed.initialize(
                model=model, optimizer=self.optimizer, config=settings, dist_init_required=False
            )
        self.model = self._engine
        if self.stage == 0:
            place_whole(self.optimizer, model)
            self._engine.enable_backward_allreduce = (
                world.size > 1
            )  # a single rank would copy all gradients twice
        elif self.stage < 3:
            _place_stage_1_and_2(self.optimizer, self._zero, model)
        else:
            _place_stage_3(self.optimizer, self._zero, model, world)

    def backward(self, loss_sum: Tensor, count: float) -> None:
        if self._micro_batches_done:  # DeepSpeed needs a call of step between two micro-batches
            self._engine.step()
        self._micro_batches_done += 1
        # DeepSpeed averages over ranks; multiplied by world.size it is the sum again.
        self._engine.backward(loss_sum * (self.world.size / count), scale_wrt_gas=False)

    _micro_batches_done = 0

    def step(self, lr: float) -> float:
        self._micro_batches_done = 0
        set_lr(self.optimizer, lr)
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if self.stage else self.optimizer.grad_norm)

    def parts(self) -> Iterator[Part]:
        if self.stage == 0:
            return share_of_whole(self.optimizer, self.world)
        return (part for parts in self.optimizer.parts.values() for part in parts if part.numel)

    def load(self, folder: Path) -> None:
        super().load(folder)
        if self.stage in (1, 2):
            self._zero.update_lp_params()
        elif self.stage == 3:
            for group in range(len(self._zero.fp16_groups)):
                self._zero._reassign_or_swap_out_partitioned_parameters(group)
            if persistent := self._zero.persistent_parameters:
                persistent[0].all_gather(persistent)

    def gathered(self) -> contextlib.AbstractContextManager[Any]:
        if self.stage < 3:
            return contextlib.nullcontext()
        return self._deepspeed.zero.GatheredParameters(list(self.module.parameters()))


def _settings(config: TrainConfig, stage: int, world: World) -> dict[str, Any]:
    """DeepSpeed's own configuration."""
    zero: dict[str, Any] = {"stage": stage}
    zero["memory_efficient_linear"] = False  # True would replace torch.nn.functional.linear permanently
    zero["stage3_param_persistence_threshold"] = (
        0  # small weights are gathered with their block, not each alone
    )
    memory = {"device": "cpu", "pin_memory": world.device.type == "cuda"}
    if config.offload != "none":
        zero["offload_optimizer"] = memory
    if config.offload == "parameters":
        zero["offload_param"] = memory
    return {
        "train_micro_batch_size_per_gpu": 1,  # only for DeepSpeed's own statistics
        "gradient_accumulation_steps": config.micro_batches,
        "gradient_clipping": config.clip if stage else 0.0,  # stage 0: in our optimiser
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's Adam for the CPU compiles C++
        "steps_per_print": None,
    }


def _place_stage_1_and_2(optimizer: Optimizer, zero: Any, model: nn.Module) -> None:
    """A group is one flat tensor, cut into as many partitions as there are ranks; a weight may span a cut."""
    names = {weight: name for name, weight in model.named_parameters()}
    for i, (weights, holder) in enumerate(
        zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True)
    ):
        parts = []
        for p in weights:
            start = offset = numel = 0
            if (mapping := p._hp_mapping) is not None:
                start, numel = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
                offset = mapping.hp_fragment_address.start
            parts.append(Part(names[p], p.shape, holder, start, offset, numel))
        optimizer.place(i, parts)


def _place_stage_3(optimizer: Optimizer, zero: Any, model: nn.Module, world: World) -> None:
    """Every weight is cut into as many parts as there are ranks, the last one padded; parts are concatenated."""
    names = {weight: name for name, weight in model.named_parameters()}
    for i, (weights, holder) in enumerate(
        zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True)
    ):
        parts, offset = [], 0
        for p in weights:
            cut = p.ds_tensor.ds_numel
            start = min(world.rank * cut, p.ds_numel)
            numel = min(cut, p.ds_numel - start)
            parts.append(Part(names[p], p.ds_shape, holder, start, offset, numel))
            offset += cut
        optimizer.place(zero.sub_group_to_group_id[i], parts)


def import_deepspeed(world: World) -> ModuleType:
    """DeepSpeed, quiet, on the right accelerator, and without compiling anything."""
    variables: dict[str, int | str] = {"RANK": world.rank, "LOCAL_RANK": 0, "WORLD_SIZE": world.size}
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        variables["LOCAL_SIZE"] = 1  # otherwise it runs numactl in every step, to count devices
    variables |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29500,
    }  # not connected to: the group exists already
    for name, value in variables.items():
        os.environ.setdefault(name, str(value))  # without these it tries MPI
    with _quiet():
        import deepspeed
        from deepspeed.ops import __compatible_ops__ as ops

        # Its shared-memory all-reduce for CPUs compiles C++ for a minute, and is no faster (measured).
        ops["deepspeed_shm_comm"] = False
        deepspeed.utils.nvtx.enable_nvtx = False  # ranges for a profiler, around hundreds of calls a step
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        deepspeed.init_distributed("nccl" if world.device.type == "cuda" else "gloo", verbose=False)
    return deepspeed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress DeepSpeed's banner on stdout and warnings about its own deprecations; errors still show."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
