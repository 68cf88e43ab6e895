"""Products of factors rounded to bfloat16."""

import threading

import pytest
import torch

from vastmax.functional import linear_cross_entropy
from vastmax.scoring import products as products_module
from vastmax.scoring.products import products, rounds_products

CPU = torch.device("cpu")


has_products = pytest.mark.skipif(
    not rounds_products(), reason="this processor does not round products to bfloat16"
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


@pytest.mark.parametrize("rounds", [True, False])
def test_where_nothing_is_rounded_it_is_said_once(monkeypatch, caplog, rounds):
    monkeypatch.setattr(products_module, "rounds_products", lambda: rounds)
    monkeypatch.setattr(products_module._rounded, "_told", False)
    for _ in range(2):
        with products(torch.bfloat16, CPU):
            pass
    assert ["computed in float32" in message for message in caplog.messages] == ([] if rounds else [True])


def test_the_switch_stays_where_the_processor_cannot_be_asked(monkeypatch):
    def fail():
        raise RuntimeError("a build without mkldnn")

    before = precision()
    monkeypatch.setattr(products_module, "rounds_products", fail)
    monkeypatch.setattr(products_module._rounded, "_told", False)
    with pytest.raises(RuntimeError, match="without mkldnn"), products(torch.bfloat16, CPU):
        pass
    assert precision() == before


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_asking_the_processor_leaves_no_trace_and_takes_no_default(default):
    before, expected = precision(), rounds_products()
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            assert rounds_products() == expected
    finally:
        torch.set_default_dtype(torch.float32)
    assert precision() == before
    a = torch.full((64, 64), 1 + 2**-12)
    assert (a @ a)[0, 0] != 64


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
