"""The decoder against the modules whose weights it holds."""

import pytest
import torch

from model.generation.decode import Decoder, compute_dtype
from model.generation.quantise import quantise
from model.network.attention import KVCache
from model.network.rope import RopeScaling

SHAPES = [
    {},
    {"qk_norm": False},
    {"tie_embeddings": False, "n_head": 6, "n_kv_head": 2},
    {"n_kv_head": 2, "rope_scaling": RopeScaling("yarn", 4.0, 32)},
]


@torch.inference_mode()
def compare(model, rows, tolerance, copy=True):
    torch.manual_seed(1)
    lengths = torch.randint(1, 20, (rows,))
    caches = [
        KVCache(model.config, rows, 64, dtype=compute_dtype(model.embed_tokens.weight)) for _ in range(2)
    ]
    prompts = torch.randint(512, (rows, 20))
    for cache in caches:
        model.hidden(prompts, cache)
        cache.lengths = lengths.clone()
    decoder = Decoder(model, copy)
    for _ in range(10):
        tokens = torch.randint(512, (rows,))
        expected = model.head(model.hidden(tokens[:, None], caches[0])[:, -1])
        got = decoder.step(tokens, caches[1])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(caches[0].lengths, caches[1].lengths)
    torch.testing.assert_close(caches[0].both.float(), caches[1].both.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rows", "copy"), [(1, False), (7, True), (7, False)])
def test_a_step_gives_the_logits_of_the_modules(random_model, shape, rows, copy):
    compare(random_model(**shape), rows, 2e-5, copy)


def test_a_step_in_half_precision_gives_the_logits_of_the_modules(random_model):
    compare(random_model().bfloat16(), 5, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        for copy in (True, False):
            compare(random_model(), 5, 0.1, copy)


def test_a_step_of_an_int8_model_gives_the_logits_of_its_modules(random_model):
    compare(quantise(random_model()), 5, 2e-3)
