"""The products of the blocks' matrices in float8, by torchao, for GPUs that have them (Ada, H100 and later)."""

from __future__ import annotations

import dataclasses
import logging

import torch
from torch import nn

from core.errors import ConfigError

ALIGNED = 16  # float8 products want sides of a multiple of this many numbers
FIRST_CAPABILITY = (8, 9)  # Ada and Hopper


def use_float8(model: nn.Module, device: torch.device) -> None:
    """Have the linear layers of `model.layers` multiply in float8, forward and backward, and all else as before.

    Every tensor is scaled by its largest number as it is now (torchao's recipe `tensorwise`: e4m3 for activations and
    weights, e5m2 for gradients; the formats are those of arXiv 2209.05433). Weights stay what they were, under the
    same names, so that optimisers, ZeRO and checkpoints see no difference. The head stays out: small errors of
    its logits cost most. A CPU rounds in the same way and multiplies in bfloat16: slow, and good for tests.
    Raises ConfigError without torchao, or on a GPU that has no such products.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        raise ConfigError(
            f"precision: fp8 needs Ada, an H100 or later; this is a {torch.cuda.get_device_name(device)}. Use bf16."
        )
    # At import they warn of extensions for other GPUs, and of torch's next version.
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
