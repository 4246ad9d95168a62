"""Matrix products of the blocks in float8, by torchao, for GPUs with float8 units (Ada, H100 and later)."""

from __future__ import annotations

import dataclasses
import logging

import torch
from torch import nn

from core.errors import ConfigError

ALIGNED = 16  # numbers; float8 products need sides that are multiples of it
FIRST_CAPABILITY = (8, 9)  # Ada and Hopper


def use_float8(model: nn.Module, device: torch.device) -> None:
    """Make the linear layers of `model.layers` multiply in float8, forward and backward.

    Every tensor is scaled by its current maximum (torchao's recipe `tensorwise`: e4m3 for activations and weights,
    e5m2 for gradients; the formats are those of arXiv 2209.05433). Weights keep their type and names, so optimisers,
    ZeRO and checkpoints see no difference. The head is left out: small errors of its logits cost most. A CPU rounds
    in the same way and multiplies in bfloat16: slow, but good for tests.
    Raises ConfigError without torchao, or on a GPU without float8.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        raise ConfigError(
            f"precision: fp8 needs Ada, an H100 or later; this is a {torch.cuda.get_device_name(device)}. Use bf16."
        )
    # At import they warn about extensions for other GPUs and about the next version of torch.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ConfigError("precision: fp8 needs torchao: pip install 'stemma[fp8]'. Or use bf16.") from error
    recipe = Float8LinearConfig.from_recipe_name("tensorwise")
    recipe = dataclasses.replace(recipe, emulate=device.type == "cpu")
    convert_to_float8_training(model.layers, config=recipe, module_filter_fn=_fits)


def _fits(module: nn.Module, _name: str) -> bool:
    return isinstance(module, nn.Linear) and not (
        module.in_features % ALIGNED or module.out_features % ALIGNED
    )
