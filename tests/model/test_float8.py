"""Products in float8, as a CPU emulates them: same rounding, multiplied in bfloat16."""

import sys

import pytest
import torch
from torch import nn
from train_engines import one_run

from core.errors import ConfigError
from model.training.float8 import use_float8

CPU = torch.device("cpu")


def test_weights_keep_their_names_and_losses_change_by_the_rounding_only(random_model):
    torch.manual_seed(2)
    model = random_model()
    ids = torch.randint(512, (2, 33))
    weights = dict(model.named_parameters())

    def loss_and_gradient():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids[:, :-1], ids[:, 1:], reduction="sum") / ids[:, 1:].numel()
        loss.backward()
        return loss.item(), model.layers[0].mlp.down_proj.weight.grad.clone()

    before, gradient = loss_and_gradient()
    use_float8(model, CPU)
    after, rounded = loss_and_gradient()
    assert {name: id(p) for name, p in model.named_parameters()} == {n: id(p) for n, p in weights.items()}
    assert after != before and after == pytest.approx(before, rel=0.02)
    assert 0 < (rounded - gradient).norm() / gradient.norm() < 0.5


def test_the_head_and_unaligned_matrices_are_unchanged(random_model):
    model = random_model(d_ff=100)
    use_float8(model, CPU)
    mlp, attention = model.layers[0].mlp, model.layers[0].self_attn
    assert type(mlp.up_proj) is nn.Linear and type(mlp.down_proj) is nn.Linear
    assert type(attention.q_proj).__name__ == "Float8Linear"
    assert "Float8" not in type(model.lm_head).__name__


@pytest.mark.parametrize(
    "how", [{"engine": "torch"}, {"zero_stage": 0}, {"zero_stage": 0, "optimizer": "muon"}]
)
def test_a_training_in_float8_follows_that_in_bfloat16(how):
    half, eighth = (one_run([0, 6], precision=precision, **how) for precision in ("bf16", "fp8"))
    assert eighth["loss"] != half["loss"]
    assert eighth["loss"] == pytest.approx(half["loss"], rel=0.03)


def test_without_torchao_the_error_names_what_to_install(random_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ConfigError, match=r"stemma\[fp8\]"):
        use_float8(random_model(), CPU)
