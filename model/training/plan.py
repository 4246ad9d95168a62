"""A training on paper: what a configuration would make, and take on hardware that is elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from core.errors import ConfigError
from core.settings import read_settings
from model.network.config import Config
from model.network.transformer import Transformer
from model.pretrain import PretrainConfig
from model.training import estimate
from model.training.estimate import Estimate
from model.training.gpus import MEMORY, PEAK_FLOPS

# The share of the peak that trainers of this kind reach on H100s by their own logs: llm.c 40 % at 124M and 50 % at
# 1.5B, nanochat 50 % at depth 24.
USUAL_MFU = 0.45


@dataclass(frozen=True)
class Plan:
    """What would be trained, how, and what it would take."""

    shape: Config
    config: PretrainConfig
    expected: Estimate


def plan(section: Mapping[str, Any], vocab_size: int, device: str = "H100", devices: int = 1) -> Plan:
    """The plan of a section `base_model` of params.yaml for so many devices; the corpus is taken to be large enough.

    Raises ConfigError for a device that is not in MEMORY, and where the model does not fit.
    """
    device = device.replace("-", " ")
    if device not in MEMORY:
        raise ConfigError(f"{device}: not one of {', '.join(MEMORY)}, whose memory and peak are known here.")
    config = read_settings(PretrainConfig, dict(section), "base_model")
    with torch.device("meta"):
        model = Transformer(config.shape(vocab_size))
    config = config.dialled(model, None)
    if config.fit:
        config = estimate.fitted(
            model.config, config, config.rows, config.seq_len, devices, 1e9 * MEMORY[device]
        )
    expected = estimate.estimate(model.config, config, config.rows, config.seq_len, devices)
    seconds = expected.flops / (USUAL_MFU * PEAK_FLOPS[device] * devices)
    return Plan(model.config, config, dataclasses.replace(expected, seconds=seconds))
