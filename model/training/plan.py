"""What a training would be, and take, on hardware that is elsewhere. Trains nothing and loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import ConfigError
from core.settings import read_settings
from model.network.config import Config
from model.training.estimate import Estimate, duration, estimate, fit_to_memory, size
from model.training.gpus import MEMORY, PEAK_FLOPS
from model.training.pretrain_config import PretrainConfig

if TYPE_CHECKING:
    from rich.console import Console

DECIDES_NOTHING = "a table for the terminal"
# The share of the peak that comparable trainers reach on H100s by their own logs: llm.c 40 % at 124M and 50 % at 1.5B,
# nanochat 50 % at depth 24.
USUAL_MFU = 0.45


@dataclass(frozen=True)
class Plan:
    """What would be trained, how, and what it would take."""

    shape: Config
    config: PretrainConfig
    expected: Estimate


def plan(section: Mapping[str, Any], vocab_size: int, device: str = "H100", devices: int = 1) -> Plan:
    """The plan of a section `base_model` of params.yaml for so many devices; the corpus is assumed to be large enough.

    Raises ConfigError for a device that is not in MEMORY, and where the model does not fit.
    """
    device = device.replace("-", " ")
    if device not in MEMORY:
        known = ", ".join(name.replace(" ", "-") for name in MEMORY)
        raise ConfigError(
            f"There is no device '{device}' whose memory and peak are known here. Choose {known}."
        )
    config = read_settings(PretrainConfig, section, "base_model")
    shape = config.shape(vocab_size)
    config = config.with_scaling_recipe(shape, None)
    if config.fit:
        config = fit_to_memory(shape, config, config.rows, config.seq_len, devices, 1e9 * MEMORY[device])
    expected = estimate(shape, config, config.rows, config.seq_len, devices)
    seconds = expected.flops / (USUAL_MFU * PEAK_FLOPS[device] * devices)
    return Plan(shape, config, dataclasses.replace(expected, seconds=seconds))


def print_plan(plan: Plan, device: str, devices: int, console: Console) -> None:
    """Print a plan for so many devices as a table."""
    from rich.table import Table

    shape, config, expected = plan.shape, plan.config, plan.expected
    memory = expected.memory
    rates = f"{config.lr:.2g}"
    if config.optimizer == "muon" and config.matrix_lr:
        rates = f"{config.matrix_lr:.2g} (Muon), {config.lr:.2g} (AdamW)"
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in {
        "model": f"{expected.parameters:,} parameters: {shape.n_layer} layers, {shape.d_model:,} wide, {shape.n_head} "
        f"query and {shape.n_kv_head} KV heads of {shape.head_dim}, vocabulary {shape.vocab_size:,}",
        "training": f"{expected.tokens:,} tokens: {expected.steps:,} steps of {config.batch_tokens:,}; "
        f"{config.optimizer}, learning rate {rates}, weight decay {config.weight_decay:.2g}",
        "compute": f"{expected.flops:.2g} FLOPs, {expected.flops_per_token:.2g} per token",
        "hardware": f"{devices} × {device}, ZeRO {config.zero_stage}, {config.micro_batches} micro-batches"
        + (", activation checkpointing" if config.activation_checkpointing else ""),
        "memory": f"{size(memory.total)} per device: weights {size(memory.weights)}, gradients "
        f"{size(memory.gradients)}, optimizer {size(memory.optimizer)}, activations {size(memory.activations)}",
        "time": f"{duration(expected.seconds or 0.0)} at {100 * USUAL_MFU:.0f} % MFU",
    }.items():
        table.add_row(f"[bold]{name}[/]", value)
    console.print(table)
