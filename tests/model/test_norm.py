"""RMSNorm's own backward pass against torch's."""

import pytest
import torch
import torch.nn.functional as F

from model.network.norm import RMSNorm


@pytest.mark.parametrize("shape", [(6, 32), (2, 5, 3, 32), (0, 32)], ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_value_and_gradients_are_those_of_torch(shape, scale):
    torch.manual_seed(0)
    norm = RMSNorm(32, eps=1e-6)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = (scale * torch.randn(shape)).requires_grad_()
    upstream = torch.randn(shape)
    exact = F.rms_norm(x.double(), (32,), norm.weight.double(), 1e-6)
    torch.testing.assert_close(norm(x), exact.float(), atol=1e-6, rtol=1e-6)
    got = torch.autograd.grad(norm(x), (x, norm.weight), upstream)
    expected = torch.autograd.grad(exact, (x, norm.weight), upstream.double())
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * max(1, 1 / scale), rtol=1e-5)


def test_with_and_without_gradients_the_value_is_the_same():
    norm, x = RMSNorm(64, eps=1e-6), torch.randn(3, 64)
    with torch.no_grad():
        assert torch.equal(norm(x), norm(x.requires_grad_()))
    assert torch.equal(norm(x), norm(x.detach()))


def test_half_precision_is_normalised_in_float32():
    norm = RMSNorm(64, eps=1e-6)
    x = (200 * torch.randn(3, 64)).half().requires_grad_()  # its squares overflow half precision
    out = norm(x)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), F.rms_norm(x.float(), (64,), eps=1e-6), atol=2e-3, rtol=2e-3)
    out.sum().backward()
    assert x.grad.dtype == torch.float16 and x.grad.isfinite().all()
