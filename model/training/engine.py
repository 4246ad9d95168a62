"""DeepSpeed, or plain torch, behind backward, step, snapshot and load. The only file that imports DeepSpeed.

Notable:
- ZeRO 0 to 3 by one number; `engine: torch`, or a machine without DeepSpeed, runs the same loop on plain torch;
- weights are float32 always; `precision: bf16` computes under autocast, and fp8 besides in float8 (float8.py). So all
  stages and both engines agree to float tolerance;
- one optimiser for all (optimizer.py), which learns here which numbers of which weights its tensors hold: what
  DeepSpeed brings along compiles C++ at first use, and its Muon takes other steps at other stages;
- the same knowledge makes checkpoints that any engine, stage and number of ranks reads (snapshot.py);
- gradients are of the loss *summed* over tokens, divided by the count of supervised tokens of the whole step,
  over all ranks and micro-batches: a row without supervised tokens weighs nothing and never divides by zero;
- a step whose gradient norm is not finite changes nothing, in every engine and stage.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.run_log import ConfigError
from model.training.float8 import use_float8
from model.training.optimizer import NEURONS, Optimizer, param_groups, set_lr
from model.training.snapshot import WEIGHT, Part, Saved, Snapshot
from model.training.train_config import TrainConfig
from model.training.world import World, engine_name


def open_engine(model: nn.Module, config: TrainConfig, world: World) -> Engine:
    """The engine that config.engine names; plain torch too where DeepSpeed is not installed."""
    if config.precision == "fp8":
        use_float8(model, world.device)
    if config.activation_checkpointing:
        checkpoint_activations(model)
    if config.offload != "none" and engine_name(config) == "torch":
        raise ConfigError(f"offload: {config.offload} is DeepSpeed's work. Install it, or set offload: none.")
    if config.compile:
        _need_compiler(world)
        model.compile()
    if engine_name(config) == "torch":
        return TorchEngine(model, config, world)
    return DeepSpeedEngine(model, config, world)


class Engine:
    """A model in training. `model` is called for the loss; `module` holds its weights."""

    model: nn.Module
    module: nn.Module
    optimizer: Optimizer

    def __init__(self, config: TrainConfig, world: World):
        self.config, self.world = config, world

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision to compute in."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.half)

    def backward(self, loss_sum: Tensor, count: float) -> None:
        """Add the gradient of loss_sum / count, count being that of the whole step over all ranks."""
        raise NotImplementedError

    def step(self, lr: float) -> float:
        """Clip, update, clear gradients. Returns the norm before clipping; not finite: nothing changed."""
        raise NotImplementedError

    def parts(self) -> Iterator[Part]:
        """The parts that this rank keeps in snapshots; together the ranks keep every number once."""
        raise NotImplementedError

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """A copy of weights and moments as they are now; every rank takes and writes its own."""
        pieces = {}
        for part in self.parts():
            for kind, tensor in self._kinds(part):
                copy = part.of(tensor).to("cpu", copy=True)
                pieces[f"{part.name}/{kind}/{part.start}"] = copy
        for part in itertools.islice(self._neurons(), self.world.rank, None, self.world.size):
            pieces[f"{part.name}/{NEURONS}/0"] = part.holder.to("cpu", copy=True)
        return Snapshot(self.world.rank, pieces, self.optimizer.updates)

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state into `folder`; every rank calls it."""
        self.snapshot().write(folder)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read what the snapshots of any engine, stage and number of ranks wrote; every rank calls it."""
        saved = Saved(folder)
        for parts in self.optimizer.parts.values():
            for part in parts:
                for kind, tensor in self._kinds(part):
                    saved.fill(part, kind, tensor)
        for part in self._neurons():
            saved.fill(part, NEURONS, part.holder)
        self.optimizer.updates = saved.updates

    def _kinds(self, part: Part) -> list[tuple[str, Tensor]]:
        """The tensors in which this part has numbers."""
        return [(WEIGHT, part.holder), *self.optimizer.moments(part.holder).items()]

    def _neurons(self) -> Iterator[Part]:
        """What every rank has of Muon's matrices besides."""
        for name, squares in self.optimizer.neurons.items():
            yield Part(name, squares.shape, squares, 0, 0, squares.numel())

    def gathered(self) -> contextlib.AbstractContextManager:
        """Inside it `module` holds whole weights on every rank (ZeRO 3 keeps parts otherwise)."""
        return contextlib.nullcontext()


class TorchEngine(Engine):
    """Plain torch; several ranks add their gradients up."""

    def __init__(self, model: nn.Module, config: TrainConfig, world: World):
        super().__init__(config, world)
        self.model = self.module = model.to(world.device)
        self.optimizer = Optimizer(param_groups(model, config), config, world)
        _place_whole(self.optimizer, model)

    def backward(self, loss_sum: Tensor, count: float) -> None:
        (loss_sum / count).backward()

    def step(self, lr: float) -> float:
        if self.world.size > 1:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])  # one message instead of one for each weight
            torch.distributed.all_reduce(flat)
            parts = flat.split([g.numel() for g in gradients])
            torch._foreach_copy_(gradients, [f.view_as(g) for f, g in zip(parts, gradients, strict=True)])
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.optimizer.grad_norm

    def parts(self) -> Iterator[Part]:
        return _share_of_whole(self.optimizer, self.world)


class DeepSpeedEngine(Engine):
    """DeepSpeed ZeRO. Stage 0 clips in our optimiser; 1 to 3, where it sees only parts, in DeepSpeed.

    A single process has nobody to share with, so that without offload every stage of it is stage 0.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, world: World):
        super().__init__(config, world)
        self._deepspeed = import_deepspeed(world)
        self.stage = config.zero_stage if world.size > 1 or config.offload != "none" else 0
        self.module = model
        self.optimizer = Optimizer(param_groups(model, config), config, world, sharded=self.stage > 0)
        if self.stage == 3:  # a block's weights come and go together: one hook, not one for each module
            self._deepspeed.utils.set_z3_leaf_modules(model, [type(model.layers[0])])
        settings = _settings(config, self.stage, world)
        with _quiet():
            self.model, self._zero, _, _ = self._deepspeed.initialize(
                model=model, optimizer=self.optimizer, config=settings, dist_init_required=False
            )
        if self.stage == 0:
            _place_whole(self.optimizer, model)
            self.model.enable_backward_allreduce = world.size > 1  # alone it would copy all gradients twice
        elif self.stage < 3:
            _place_stage_1_and_2(self.optimizer, self._zero, model)
        else:
            _place_stage_3(self.optimizer, self._zero, model, world)

    def backward(self, loss_sum: Tensor, count: float) -> None:
        if self._micro_batches_done:  # DeepSpeed wants a step call between two micro-batches
            self.model.step()
        self._micro_batches_done += 1
        # DeepSpeed averages over ranks; times world.size it is the sum again.
        self.model.backward(loss_sum * (self.world.size / count), scale_wrt_gas=False)

    _micro_batches_done = 0

    def step(self, lr: float) -> float:
        self._micro_batches_done = 0
        set_lr(self.optimizer, lr)
        self.model.step()
        return float(self.model.get_global_grad_norm() if self.stage else self.optimizer.grad_norm)

    def parts(self) -> Iterator[Part]:
        if self.stage == 0:
            return _share_of_whole(self.optimizer, self.world)
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

    def gathered(self) -> contextlib.AbstractContextManager:
        if self.stage < 3:
            return contextlib.nullcontext()
        return self._deepspeed.zero.GatheredParameters(list(self.module.parameters()))


def _settings(config: TrainConfig, stage: int, world: World) -> dict:
    """DeepSpeed's own configuration."""
    zero = {"stage": stage}
    zero["memory_efficient_linear"] = False  # it would replace torch.nn.functional.linear for good
    zero["stage3_param_persistence_threshold"] = 0  # small weights travel with their block, not each alone
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


def _place_whole(optimizer: Optimizer, model: nn.Module) -> None:
    """Every weight is held whole, by itself."""
    names = {weight: name for name, weight in model.named_parameters()}
    for i, group in enumerate(optimizer.param_groups):
        optimizer.place(i, (Part(names[p], p.shape, p, 0, 0, p.numel()) for p in group["params"]))


def _share_of_whole(optimizer: Optimizer, world: World) -> Iterator[Part]:
    """Of weights that every rank holds whole, each rank keeps every size-th."""
    parts = (part for parts in optimizer.parts.values() for part in parts)
    return itertools.islice(parts, world.rank, None, world.size)


def _place_stage_1_and_2(optimizer: Optimizer, zero, model: nn.Module) -> None:
    """A group is one flat tensor, cut into as many partitions as there are ranks; a weight may lie across a cut."""
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


def _place_stage_3(optimizer: Optimizer, zero, model: nn.Module, world: World) -> None:
    """Every weight is cut into as many parts as there are ranks, the last one padded; parts lie end to end."""
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


def import_deepspeed(world: World):
    """DeepSpeed, quiet, on the right accelerator, and without compiling anything."""
    place = {"RANK": world.rank, "LOCAL_RANK": 0, "WORLD_SIZE": world.size}
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        place["LOCAL_SIZE"] = 1  # or it starts numactl in every step, to count devices
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}  # never dialled: the group exists already
    for name, value in place.items():
        os.environ.setdefault(name, str(value))  # without these it looks for MPI
    with _quiet():
        import deepspeed
        from deepspeed.ops import __compatible_ops__ as ops

        # Its shared-memory all-reduce for CPU compiles C++ for a minute, and is no faster (measured).
        ops["deepspeed_shm_comm"] = False
        deepspeed.utils.nvtx.enable_nvtx = False  # ranges for a profiler, around hundreds of calls a step
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        deepspeed.init_distributed("nccl" if world.device.type == "cuda" else "gloo", verbose=False)
    return deepspeed


@contextlib.contextmanager
def _quiet():
    """DeepSpeed greets on stdout and warns about its own deprecations; errors still show."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def checkpoint_activations(model: nn.Module) -> None:
    """Each block keeps its input alone, and computes the rest again in backward; nothing in it is random."""
    for block in model.layers:
        block.forward = functools.partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def _need_compiler(world: World) -> None:
    if world.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ConfigError("compile: true needs a C++ compiler on CPU. Install g++, or set compile: false.")
