"""Losses of logits taken a few rows at a time against the same loss of all logits at once."""

import pytest
import torch
from torch.nn import functional

from vastmax.scoring import blocks, linear_loss

N, V, D = 7, 5, 3


def power_loss(logits, target, scale, power, shift):
    """A loss with an integer and a floating argument per row, and two shared ones."""
    shifted = (logits - scale.unsqueeze(-1) * shift).exp().pow(power)
    return shifted.sum(-1).log() - logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)


@pytest.fixture
def problem():
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    target = torch.randint(V, (N,), generator=g)
    return draw(N, D), draw(V, D), draw(V), target, draw(N), draw(()), draw(V)


@pytest.mark.parametrize("elements", [1, 2 * V * 4, 1 << 20])
def test_equals_the_loss_of_all_logits(problem, elements, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
    hidden, weight, bias, target, scale, power, shift = problem
    ours = linear_loss(power_loss, hidden, weight, linear_bias=bias, rows=(target, scale), shared=(power, shift))
    theirs = power_loss(functional.linear(hidden, weight, bias), target, scale, power, shift)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = (hidden, weight, bias, scale, power, shift)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_gradcheck(problem, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 3 * V * 4)
    hidden, weight, bias, target, scale, power, shift = problem

    def loss(hidden, weight, bias, scale, power, shift):
        return linear_loss(
            power_loss, hidden, weight, linear_bias=bias, rows=(target, scale), shared=(power, shift)
        )

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias, scale, power, shift))


def test_no_row_and_no_bias():
    hidden = torch.zeros(0, D, requires_grad=True)
    loss = linear_loss(lambda logits: logits.sum(-1), hidden, torch.ones(V, D))
    assert loss.shape == (0,)
    assert torch.autograd.grad(loss.sum(), hidden)[0].shape == (0, D)


def test_half_precision_is_computed_in_float32(problem):
    hidden, weight = (x.detach().bfloat16().requires_grad_() for x in problem[:2])
    ours = linear_loss(lambda logits: logits.logsumexp(-1), hidden, weight)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(
        ours.double(), (hidden.double() @ weight.double().t()).logsumexp(-1), rtol=1e-5, atol=1e-5
    )
    ours.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_half_precision_class_rows_are_converted_a_block_at_a_time(problem, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 2 * D)
    hidden, weight, bias = problem[:3]
    half = weight.detach().bfloat16().requires_grad_()
    u = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = {}
    for rows in (half, half.detach().double().requires_grad_()):
        loss = linear_loss(lambda logits: logits.logsumexp(-1), hidden, rows, linear_bias=bias)
        found[rows.dtype] = loss, *torch.autograd.grad(loss, [hidden, rows, bias], u)
    for mine, other in zip(found[torch.bfloat16], found[torch.float64], strict=True):
        torch.testing.assert_close(mine.double(), other.to(mine.dtype).double())


def test_holds_no_tensor_of_all_logits(monkeypatch):
    """Only shapes of a block are seen by the loss."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 2 * V * 4)
    seen = []

    def loss(logits):
        seen.append(tuple(logits.shape))
        return logits.logsumexp(-1)

    hidden = torch.randn(N, D, requires_grad=True)
    linear_loss(loss, hidden, torch.randn(V, D)).sum().backward()
    assert set(seen) == {(2, V), (1, V)}
    assert len(seen) == 8


def test_errors():
    with pytest.raises(ValueError, match=r"input: expected shape \(N, 3\), got \(1, 2, 3\)"):
        linear_loss(lambda logits: logits.sum(-1), torch.zeros(1, 2, 3), torch.zeros(V, D))
    with pytest.raises(ValueError, match=r"rows: expected tensors of 2 rows, got shape \(3,\)"):
        linear_loss(lambda logits, t: logits.sum(-1), torch.zeros(2, 3), torch.zeros(V, D), rows=(torch.zeros(3),))
