"""Int8 weights: the products against float64, the model against itself in float32."""

import pytest
import torch

from model.generation import quantise as int8
from model.generation.generate import generate
from model.generation.quantise import Int8Linear, quantise, two_digit_product, widened_product
from model.hub.save import save_pretrained


def test_weights_are_rounded_to_half_a_step_of_their_channel():
    torch.manual_seed(0)
    weight = torch.randn(40, 64) * torch.logspace(-6, 3, 40)[:, None]
    weight[7] = 0
    layer = Int8Linear.of(weight)
    back = layer.weight.double() * layer.scale.double()[:, None]
    assert ((back - weight).abs() <= 0.5001 * weight.abs().amax(1, keepdim=True) / 127).all()
    assert layer.weight.abs().amax(1).tolist() == [0 if row == 7 else 127 for row in range(40)]


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_two_int8_digits_lose_a_thousandth_of_the_loss_of_int8_weights(rows):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 300), torch.randn(50, 300)
    x[0] *= 1e4  # every token has its own scale
    layer = Int8Linear.of(weight)
    exact = x.double() @ (layer.weight.double() * layer.scale.double()[:, None]).t()
    lost_to_weights = (exact - x.double() @ weight.double().t()).norm(dim=1)
    lost_to_digits = (two_digit_product(x, layer.weight, layer.scale) - exact).norm(dim=1)
    assert (lost_to_digits < 0.02 * lost_to_weights).all()
    torch.testing.assert_close(
        widened_product(x, layer.weight, layer.scale), exact.float(), rtol=1e-4, atol=1e-3
    )
    assert torch.equal(two_digit_product(torch.zeros(1, 300), layer.weight, layer.scale), torch.zeros(1, 50))


def test_a_cpu_whose_int8_product_saturates_converts_the_weights(monkeypatch):
    true = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: true(a, b).clamp(-32768, 32767))
    int8.int_mm_is_exact.cache_clear()
    try:
        assert not int8.int_mm_is_exact()
        x, layer = torch.randn(3, 64), Int8Linear.of(torch.randn(8, 64))
        assert torch.equal(layer(x), widened_product(x, layer.weight, layer.scale))
    finally:
        int8.int_mm_is_exact.cache_clear()


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_model_generates_and_stays_close(random_model, tied):
    model, again = (random_model(tie_embeddings=tied) for _ in range(2))
    ids = torch.arange(200).view(2, 100) * 7 % 512
    with torch.no_grad():
        before = model(ids).log_softmax(-1)
        small = quantise(again)(ids).log_softmax(-1)
    assert 0 < torch.nn.functional.kl_div(small, before, log_target=True, reduction="batchmean") / 100 < 2e-3
    assert not any(isinstance(m, torch.nn.Linear) for m in again.modules())
    common = {"max_new_tokens": 20, "temperature": 1.0}
    batch = generate(again, [[1, 2], [3] * 9, [4, 5, 6]], **common)
    alone = [generate(again, [p], seed=i, **common)[0] for i, p in enumerate([[1, 2], [3] * 9, [4, 5, 6]])]
    assert [c.ids for c in batch] == [c.ids for c in alone]


def test_bfloat16_models_can_be_quantised(random_model):
    model = quantise(random_model().bfloat16())
    (got,) = generate(model, [[1, 2, 3]], max_new_tokens=10)
    assert len(got.ids) == 10


def test_saving_an_int8_model_is_refused(random_model, tokenizer_folder, tmp_path):
    with pytest.raises(ValueError, match="Save the model before you quantise"):
        save_pretrained(quantise(random_model()), tokenizer_folder, tmp_path / "out", "")


def test_an_int8_model_gives_losses_and_refuses_training(random_model, monkeypatch):
    model = quantise(random_model())
    ids = torch.arange(200).view(2, 100) * 7 % 512
    targets = ids.roll(-1, 1).masked_fill(ids < 50, -100)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model(ids).mT, targets, reduction="none")
        monkeypatch.setitem(int8.LOGITS_AT_ONCE, "cpu", 7 * 512)  # in several chunks
        torch.testing.assert_close(model(ids, targets), expected)
    with pytest.raises(ValueError, match="not for training"):
        model.lm_head(torch.zeros(1, 1, model.config.d_model), targets[:1, :1], reduction="sum")
