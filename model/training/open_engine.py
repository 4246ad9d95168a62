"""Opens the engine that a configuration names, after preparing the model for it."""

from __future__ import annotations

import shutil

from torch import nn

from core.errors import ConfigError
from model.training.deepspeed_engine import DeepSpeedEngine
from model.training.engine import Engine, TorchEngine, checkpoint_activations
from model.training.float8 import use_float8
from model.training.train_config import TrainConfig
from model.training.world import World, engine_name


def open_engine(model: nn.Module, config: TrainConfig, world: World) -> Engine:
    """The engine that config.engine names; plain torch where DeepSpeed is not installed.

    Raises ConfigError for settings that this machine or installation cannot satisfy.
    """
    if config.precision == "fp8":
        use_float8(model, world.device)
    if config.activation_checkpointing:
        checkpoint_activations(model)
    if config.offload != "none" and engine_name(config) == "torch":
        raise ConfigError(f"offload: {config.offload} needs DeepSpeed. Install it, or set offload: none.")
    if config.compile:
        _need_compiler(world)
        model.compile()
    if engine_name(config) == "torch":
        return TorchEngine(model, config, world)
    return DeepSpeedEngine(model, config, world)


def _need_compiler(world: World) -> None:
    if world.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ConfigError("compile: true needs a C++ compiler on CPU. Install g++, or set compile: false.")
