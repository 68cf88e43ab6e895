"""The one reduction against its formula."""

import pytest
import torch

from vastmax.reduction import reduce_rows


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_formula_and_gradient(weighted, masked):
    g = torch.Generator().manual_seed(0)
    loss = torch.randn(3, 4, generator=g, dtype=torch.float64).requires_grad_()
    w = torch.rand(3, 4, generator=g).double() if weighted else torch.ones(3, 4).double()
    ignored = torch.rand(3, 4, generator=g) < 0.4 if masked else torch.zeros(3, 4, dtype=torch.bool)
    options = {"weight": w if weighted else None, "ignored": ignored if masked else None}
    counted = (~ignored).double() * w
    expected = {
        "none": counted * loss,
        "sum": (counted * loss).sum(),
        "mean": (counted * loss).sum() / counted.sum(),
    }
    for reduction, value in expected.items():
        ours = reduce_rows(loss, reduction=reduction, **options)
        torch.testing.assert_close(ours, value)
        upstream = torch.randn(value.shape, generator=g, dtype=torch.float64)
        (mine,) = torch.autograd.grad(ours, loss, upstream)
        (other,) = torch.autograd.grad(value, loss, upstream, retain_graph=True)
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_to_count_is_zero_and_attached(reduction):
    loss = torch.randn(4, requires_grad=True)
    for options in ({"ignored": torch.ones(4, dtype=torch.bool)}, {"weight": torch.zeros(4)}):
        value = reduce_rows(loss, reduction=reduction, **options)
        assert value.item() == 0.0
        (grad,) = torch.autograd.grad(value, loss)
        assert torch.equal(grad, torch.zeros(4))


def test_an_ignored_row_may_be_infinite():
    loss = torch.tensor([1.0, torch.inf], requires_grad=True)
    value = reduce_rows(loss, ignored=torch.tensor([False, True]))
    assert value.item() == 1.0
    assert torch.equal(torch.autograd.grad(value, loss)[0], torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "average"}, "reduction: expected one of none, mean, sum, got 'average'"),
        ({"weight": torch.ones(3)}, r"weight: expected shape \(2,\), one per row, got \(3,\)"),
        ({"ignored": torch.ones(3, dtype=torch.bool)}, r"ignored: expected shape \(2,\)"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        reduce_rows(torch.ones(2), **options)
