"""The cross-entropy of few features, whose logits are made twice: torch's own, and its gradients."""

import pytest
import torch
from torch.nn import functional

from vastmax.heads.narrow_cross_entropy import NARROW, is_narrow, narrow_cross_entropy
from vastmax.heads.softmax_part import SoftmaxPart
from vastmax.kernels import use

ROWS, CLASSES, FEATURES = 6, 700, 4


@pytest.fixture
def problem():
    hidden = torch.randn(ROWS, FEATURES, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(CLASSES, FEATURES, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.tensor([0, 699, 3, 3, 256, 3])  # a class of several rows


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_loss_and_gradients_are_those_of_torch(problem, backend):
    hidden, weight, label = problem
    upstream = torch.randn(ROWS, dtype=torch.float64)
    expected = functional.cross_entropy(hidden @ weight.t(), label, reduction="none")
    gradients = torch.autograd.grad(expected, (hidden, weight), upstream)
    with use(backend):
        found = narrow_cross_entropy(hidden, weight, label)
        found_gradients = torch.autograd.grad(found, (hidden, weight), upstream)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_gradients, gradients, rtol=1e-11, atol=1e-12)


def test_class_rows_of_half_precision_get_gradients_of_it(problem):
    hidden, weight, label = problem
    hidden = hidden.detach().float().requires_grad_()
    half = weight.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = narrow_cross_entropy(hidden, half, label)
    assert loss.dtype == torch.float32
    expected = functional.cross_entropy(hidden @ half.float().t(), label, reduction="none")
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_reduced_by_weights_as_a_wide_part_is(problem):
    hidden, weight, label = problem
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    parts = [
        SoftmaxPart(torch.arange(ROWS), wide(hidden, by), wide(weight, by), None, label)
        for by in (0, NARROW + 1 - FEATURES)
    ]
    assert [is_narrow(part.weight) for part in parts] == [True, False]
    narrow, plain = (part.exact_loss(sample_weight=weights, reduction="sum") for part in parts)
    torch.testing.assert_close(narrow, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(narrow, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight))
    )


def wide(rows, by):
    """The same rows with so many features more, all zero: no product changes."""
    return functional.pad(rows, (0, by))
