"""The loss in chunks against torch's cross_entropy over whole logits, in value and in every gradient."""

import pytest
import torch
import torch.nn.functional as F

from model.network import loss
from model.network.config import IGNORE
from model.network.loss import Head, cross_entropy

N, C, V = 50, 24, 301


@pytest.fixture(params=[1, 7, 16, 1000], ids=lambda tokens: f"{tokens} at once")
def chunk(request, monkeypatch):
    monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", request.param * V)


def inputs(ignored: bool = True):
    torch.manual_seed(0)
    hidden = torch.randn(2, N // 2, C, requires_grad=True)
    weight = (3 * torch.randn(V, C) * C**-0.5).requires_grad_()
    targets = torch.randint(0, V, (2, N // 2))
    if ignored:
        targets[1, 3:15] = IGNORE
    return hidden, weight, targets


def plain(hidden, weight, targets, dtype=torch.float32):
    """The losses of single tokens by torch."""
    logits = F.linear(hidden.to(dtype), weight.to(dtype)).float()
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none"
    ).view(targets.shape)


def assert_same(ours, theirs, leaves, tolerance=1e-6):
    """The scalar losses and the gradient of each leaf."""
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    got, expected = torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=tolerance * b.abs().max().item(), rtol=tolerance)


@pytest.mark.parametrize("ignored", [False, True], ids=["all supervised", "some ignored"])
def test_a_sum_equals_torch_with_gradients(chunk, ignored):
    hidden, weight, targets = inputs(ignored)
    ours = cross_entropy(hidden, weight, targets, reduction="sum")
    assert_same(ours / 7, plain(hidden, weight, targets).sum() / 7, (hidden, weight))


def test_a_weighted_sum_equals_torch_with_gradients(chunk):
    hidden, weight, targets = inputs()
    weights = torch.randn(targets.shape)  # advantages have either sign
    ours = cross_entropy(hidden, weight, targets, weights, reduction="sum")
    assert_same(ours, (plain(hidden, weight, targets) * weights).sum(), (hidden, weight))


def test_losses_of_tokens_equal_torch_with_gradients(chunk):
    hidden, weight, targets = inputs()
    ours, theirs = cross_entropy(hidden, weight, targets), plain(hidden, weight, targets)
    assert ours.shape == targets.shape and (ours[1, 3:15] == 0).all()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert_same(ours.square().mean(), theirs.square().mean(), (hidden, weight))


def test_a_certain_token_has_loss_0_and_an_impossible_one_a_finite_loss():
    hidden, weight = torch.tensor([[200.0]] * 2), torch.tensor([[1.0], [-1.0]])
    losses = cross_entropy(hidden, weight, torch.tensor([0, 1]))
    assert losses.tolist() == [0, 400]  # log of a probability that underflows float32


def test_autocast_differs_from_torch_by_bfloat16_alone(chunk):
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        ours = cross_entropy(hidden, weight, targets, reduction="sum")
        each = cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(each, plain(hidden, weight, targets, torch.bfloat16), atol=1e-6, rtol=1e-6)
    for total in (ours, each.sum()):
        theirs = plain(hidden, weight, targets, torch.bfloat16).sum()
        assert_same(total, theirs, (hidden, weight), tolerance=2**-7)  # bfloat16 keeps 8 bits


def test_no_supervised_token_gives_zero_and_zero_gradients():
    hidden, weight, targets = inputs()
    for reduction in ("sum", "none"):
        total = cross_entropy(hidden, weight, torch.full_like(targets, IGNORE), reduction=reduction).sum()
        assert total == 0
        for gradient in torch.autograd.grad(total, (hidden, weight)):
            assert (gradient == 0).all()


@pytest.mark.parametrize("wrong", [V, -1])
def test_a_target_outside_the_vocabulary_is_an_error(wrong):
    hidden, weight, targets = inputs()
    targets[0, 0] = wrong
    with pytest.raises(RuntimeError, match="out of bounds"):
        cross_entropy(hidden, weight, targets)


def test_weights_belong_to_a_sum():
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match="Multiply single losses"):
        cross_entropy(hidden, weight, targets, torch.ones(targets.shape))


def test_no_tensor_is_larger_than_a_chunk_of_logits(monkeypatch):
    """No tensor that the forward or the backward pass allocates has more elements than allowed."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.numbers = max(self.numbers, tensor.numel())
            return out

    monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", 30 * V)
    hidden, weight, targets = inputs()
    for reduction in ("sum", "none"):
        with Largest() as seen:
            cross_entropy(hidden, weight, targets, reduction=reduction).sum().backward()
        assert seen.numbers <= 30 * V


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_models_gradients_equal_those_from_its_logits(random_model, tied, monkeypatch):
    monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", 512 * 10)
    ids, targets = torch.randint(0, 512, (4, 33)), torch.randint(0, 512, (4, 33))
    targets[1, 5:20] = IGNORE
    model = random_model(tie_embeddings=tied)
    expected = F.cross_entropy(
        model(ids).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORE
    )
    leaves = tuple(model.parameters())
    assert len(leaves) == len(list(random_model(tie_embeddings=True).parameters())) + (not tied)
    assert_same(model(ids, targets, reduction="sum"), expected, leaves, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_results_are_the_same(dtype):
    hidden, weight, targets = inputs()
    head = Head(C, V)
    head.weight = torch.nn.Parameter(weight.detach())
    head.compile(backend="inductor")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours = head(hidden, targets, reduction="sum")
        plain_ones = cross_entropy(hidden, head.weight, targets, reduction="sum")
    assert_same(ours, plain_ones, (hidden, head.weight), tolerance=1e-5)
