"""Products of factors rounded to bfloat16."""

import threading

import pytest
import torch

from vastmax.functional import linear_cross_entropy
from vastmax.scoring import products as products_module
from vastmax.scoring.products import products

CPU = torch.device("cpu")
has_products = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 products"
)


def precision():
    return torch.backends.mkldnn.matmul.fp32_precision


@has_products
def test_factors_are_rounded_and_sums_are_not():
    a, b = torch.randn(256, 512), torch.randn(512, 256)
    with products(torch.bfloat16, CPU):
        rounded = a @ b
    expected = (a.bfloat16().double() @ b.bfloat16().double()).float()
    torch.testing.assert_close(rounded, expected, rtol=1e-5, atol=1e-4)
    assert not torch.equal(rounded, a @ b)


def test_the_switch_is_set_back_by_the_last_to_leave():
    before = precision()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with products(torch.bfloat16, CPU):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    with pytest.raises(RuntimeError, match="stop"), products(torch.bfloat16, CPU):
        raise RuntimeError("stop")
    assert precision() == "bf16"
    leave.set()
    thread.join()
    assert precision() == before
    with products(None, CPU):
        assert precision() == before


def test_the_switch_stays_where_the_processor_cannot_be_asked(monkeypatch):
    def fail():
        raise RuntimeError("a build without mkldnn")

    before = precision()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", fail)
    monkeypatch.setattr(products_module._rounded, "_told", False)
    with pytest.raises(RuntimeError, match="without mkldnn"), products(torch.bfloat16, CPU):
        pass
    assert precision() == before


@has_products
def test_gradients_are_off_by_no_more_than_the_rounding():
    hidden = torch.randn(256, 64, requires_grad=True)
    weight = (0.3 * torch.randn(4096, 64)).requires_grad_()
    target = torch.randint(4096, (256,))
    exact, rounded = (
        torch.autograd.grad(linear_cross_entropy(hidden, weight, target, product_dtype=dtype), (hidden, weight))
        for dtype in (None, torch.bfloat16)
    )
    for one, other in zip(exact, rounded, strict=True):
        assert 0 < (one - other).norm() / one.norm() < 2**-8


@has_products
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_negligible_classes_are_rounded_rather_than_left_out(reduction, softcap):
    """The error of rounding them is a small share of the error of leaving them out; nothing else is rounded."""
    hidden = torch.randn(128, 64, requires_grad=True)
    weight = (0.3 * torch.randn(2048, 64)).requires_grad_()
    target = torch.randint(2048, (128,))
    upstream = torch.randn(()) if reduction == "mean" else torch.randn(128)

    def gradients(**options):
        loss = linear_cross_entropy(hidden, weight, target, reduction=reduction, softcap=softcap, **options)
        return loss, *torch.autograd.grad(loss, (hidden, weight), upstream)

    exact = gradients()
    left_out = gradients(filter_eps=0.05)
    rounded = gradients(filter_eps=0.05, product_dtype=torch.bfloat16)
    assert torch.equal(exact[0], rounded[0])
    for value, without, near in zip(exact[1:], left_out[1:], rounded[1:], strict=True):
        assert 0 < (value - near).norm() < (value - without).norm() / 128


def test_bad_values():
    hidden, weight, target = torch.randn(2, 3), torch.randn(4, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"product_dtype: expected torch.bfloat16 or None, got torch.float16"):
        linear_cross_entropy(hidden, weight, target, product_dtype=torch.float16)
