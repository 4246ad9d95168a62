"""The shape of a model: what it says of the real one, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model.network.config import Config

SHAPES = {
    "the demo": Config.from_depth(4, 1024),
    "one layer, untied": Config.from_depth(1, 300, tie_embeddings=False),
    "Llama's, no QK-norm": Config.from_depth(3, 512, qk_norm=False),
    "heads wider than the model, untied": Config(500, 2, 6, 3, 64, 96, 224, tie_embeddings=False),
    "every head its own key": Config(500, 2, 4, 4, 16, 64, 128),
    "depth 12": Config.from_depth(12, 32_768),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_of_the_weights_are_those_of_the_model(name: str):
    import torch

    from model.network.transformer import Transformer

    config = SHAPES[name]
    with torch.device("meta"):
        model = Transformer(config)
    assert config.weight_shapes() == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert list(config.weight_shapes()) == [n for n, _ in model.named_parameters()]
    assert config.num_params() == sum(p.numel() for p in model.parameters())
    input_alone = 0 if config.tie_embeddings else model.embed_tokens.weight.numel()
    assert config.num_params(embedding=False) == config.num_params() - input_alone


def test_shape_and_settings_need_no_library():
    script = (
        "import sys; from model.network.config import Config; Config.from_depth(4, 1024).num_params();"
        "from model.vocabulary.config import TokenizerConfig; TokenizerConfig();"
        "assert not {'torch', 'numpy', 'pydantic', 'tokenizers', 'tiktoken'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True)
