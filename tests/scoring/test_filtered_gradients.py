"""Gradients without the classes that are negligible for a block of rows."""

import pytest
import torch
from torch.nn import functional

from vastmax import kernels
from vastmax.functional import linear_cross_entropy
from vastmax.scoring import blocks

ROWS, CLASSES, EPS = 6, 40, 0.01


@pytest.fixture(params=["torch", "numba"])
def backend(request):
    with kernels.use(request.param):
        yield


@pytest.fixture
def problem():
    """With the rows of the identity as hidden, the gradient of weight is that of the logits."""
    hidden = torch.eye(ROWS, dtype=torch.float64)
    weight = (3 * torch.randn(CLASSES, ROWS, dtype=torch.float64)).requires_grad_()
    return hidden, weight, torch.randint(CLASSES, (ROWS,))


def logit_gradient(hidden, weight, target, upstream, **options):
    loss = linear_cross_entropy(hidden, weight, target, reduction="none", **options)
    (gradient,) = torch.autograd.grad(loss, weight, upstream)
    return loss, gradient.t()


def expected_gradient(weight, target, upstream, kept):
    probability = weight.detach().t().softmax(-1)
    gradient = (probability - functional.one_hot(target, CLASSES)) * upstream.unsqueeze(-1)
    return gradient.where(kept(probability), 0.0)


@pytest.mark.parametrize("classes_at_a_time", [CLASSES, 7])
def test_a_class_goes_where_it_is_negligible_in_all_rows_and_the_target_of_none(
    problem, backend, classes_at_a_time
):
    _, weight, target = problem
    upstream = torch.randn(ROWS, dtype=torch.float64)

    def kept(probability):
        keep = (probability >= EPS).any(0)
        keep[target] = True
        assert 0 < keep.sum() < CLASSES
        return keep

    loss, gradient = logit_gradient(*problem, upstream, filter_eps=EPS, block_size=classes_at_a_time)
    torch.testing.assert_close(loss, functional.cross_entropy(weight.t(), target, reduction="none"))
    torch.testing.assert_close(gradient, expected_gradient(weight, target, upstream, kept))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_are_filtered_block_by_block(problem, backend, reduction, monkeypatch):
    """Two rows at a time, held or scored again."""
    hidden, weight, target = problem
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 2 * CLASSES)
    monkeypatch.setattr(blocks, "MIN_ROWS", 1)
    upstream = torch.full((ROWS,), 1 / ROWS if reduction == "mean" else 1.0, dtype=torch.float64)

    def kept(probability):
        keep = (probability >= EPS) | functional.one_hot(target, CLASSES).bool()
        return keep.view(-1, 2, CLASSES).any(1).repeat_interleave(2, 0)

    loss = linear_cross_entropy(hidden, weight, target, reduction=reduction, filter_eps=EPS)
    loss = (loss * upstream).sum() if reduction == "none" else loss
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient.t(), expected_gradient(weight, target, upstream, kept))


def test_hidden_and_bias_get_what_the_filtered_logits_carry_back(backend):
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(CLASSES, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(CLASSES, dtype=torch.float64, requires_grad=True)
    target = torch.randint(CLASSES, (5,))
    loss = linear_cross_entropy(hidden, weight, target, linear_bias=bias, temperature=0.5, filter_eps=EPS)
    of_hidden, of_weight, of_bias = torch.autograd.grad(loss, (hidden, weight, bias))

    probability = (functional.linear(hidden, weight, bias) / 0.5).softmax(-1).detach()
    keep = (probability >= EPS).any(0)
    keep[target] = True
    assert keep.sum() < CLASSES
    gradient = ((probability - functional.one_hot(target, CLASSES)) / 5 / 0.5).where(keep, 0.0)
    torch.testing.assert_close(of_hidden, gradient @ weight.detach())
    torch.testing.assert_close(of_weight, gradient.t() @ hidden.detach())
    torch.testing.assert_close(of_bias, gradient.sum(0))


def test_the_stated_bound_of_hidden(backend):
    hidden = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(CLASSES, 4, dtype=torch.float64)
    target = torch.randint(CLASSES, (1,))
    exact, filtered = (
        torch.autograd.grad(linear_cross_entropy(hidden, weight, target, filter_eps=eps), hidden)[0]
        for eps in (None, EPS)
    )
    negligible = functional.linear(hidden, weight).softmax(-1).squeeze(0) < EPS
    bound = EPS * weight[negligible].norm(dim=-1).sum()
    assert 0 < (exact - filtered).norm() <= bound


def test_beside_options(problem, backend):
    hidden, weight, target = problem
    with pytest.raises(ValueError, match=r"filter_eps: .*beside label_smoothing=0.1"):
        linear_cross_entropy(hidden, weight, target, label_smoothing=0.1, filter_eps=EPS)
    for eps in (0.0, 1.0, -1e-3):
        with pytest.raises(ValueError, match=r"filter_eps: expected"):
            linear_cross_entropy(hidden, weight, target, filter_eps=eps)
    everything = {"z_loss": 0.1, "softcap": 5.0, "focal_gamma": 1.5, "weight": torch.rand(CLASSES).double()}
    gradients = [
        torch.autograd.grad(linear_cross_entropy(hidden, weight, target, filter_eps=eps, **everything), weight)[0]
        for eps in (None, 1e-300)
    ]
    torch.testing.assert_close(*gradients)
