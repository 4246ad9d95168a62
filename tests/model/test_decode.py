"""The decoding step against the modules whose weights it uses."""

import pytest
import torch

import model.generation.decode as decode
from model.generation.decode import Decoder, compute_dtype, n_panels
from model.generation.quantise import quantise
from model.network.attention import KVCache
from model.network.config import RopeScaling

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


@pytest.mark.parametrize("shape", SHAPES)
def test_large_matrices_are_divided_into_panels_that_give_the_same_logits(random_model, shape, monkeypatch):
    monkeypatch.setattr(decode, "PANELS_FROM", 0)
    monkeypatch.setattr(decode, "PANEL", 32)
    model = random_model(**shape)
    decoder = decode.Decoder(model)
    assert n_panels(torch.empty(8, 512)) == 16
    with torch.inference_mode():
        x = torch.randn(5, model.config.d_model)
        torch.testing.assert_close(decoder.head(x), model.head(model.norm(x)), atol=2e-5, rtol=2e-5)
    compare(model, 7, 2e-5)


def test_panels_are_about_512_columns_and_at_least_as_many_as_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert n_panels(torch.empty(512, 2688, device="meta")) == 1  # not on a CPU
    assert [n_panels(torch.empty(600, n)) for n in (512, 2688, 16384, 50257, 99)] == [1, 6, 32, 1, 1]


def test_a_step_in_half_precision_gives_the_logits_of_the_modules(random_model):
    compare(random_model().bfloat16(), 5, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        for copy in (True, False):
            compare(random_model(), 5, 0.1, copy)


def test_a_step_of_an_int8_model_gives_the_logits_of_its_modules(random_model):
    compare(quantise(random_model()), 5, 2e-3)
