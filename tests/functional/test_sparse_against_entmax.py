"""The sparse mappings and losses beside those of the package `entmax`, and where that one is wrong."""

import inspect

import pytest
import torch

from vastmax import functional as F

theirs = pytest.importorskip("entmax")

PAIRS = {
    "sparsemax": (F.sparsemax, theirs.sparsemax, F.sparsemax_loss, theirs.sparsemax_loss),
    "entmax15": (F.entmax15, theirs.entmax15, F.entmax15_loss, theirs.entmax15_loss),
    **{
        f"entmax {alpha}": (
            lambda x, alpha=alpha: F.entmax(x, alpha),
            # 100 halvings leave nothing of the bracket: what is left is the rounding of the threshold.
            lambda x, alpha=alpha: theirs.entmax_bisect(x, alpha, n_iter=100),
            lambda x, y, alpha=alpha, **o: F.entmax_loss(x, y, alpha, **o),
            lambda x, y, alpha=alpha: theirs.entmax_bisect_loss(x, y, alpha, 100),
        )
        # Near 1 their threshold, (alpha - 1) A - 1, cancels: 1.01 loses two digits, 1.001 three.
        for alpha in (1.01, 1.25, 1.5, 1.8, 2.0, 3.0)
    },
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_values_and_gradients(name, scale):
    mine, other, my_loss, other_loss = PAIRS[name]
    x = (scale * normal(6, 40)).requires_grad_()
    u, y = normal(6, 40, seed=1), torch.arange(6)
    for a, b, upstream in (
        (mine(x), other(x), u),
        (my_loss(x, y, reduction="none"), other_loss(x, y), u[:, 0]),
    ):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
        (ga,), (gb,) = (torch.autograd.grad(v, x, upstream) for v in (a, b))
        torch.testing.assert_close(ga, gb, atol=1e-10, rtol=0)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
def test_gradient_of_alpha(alpha):
    x, u = normal(5, 12), normal(5, 12, seed=1)
    gradients = []
    for f in (F.entmax, lambda x, a: theirs.entmax_bisect(x, a, n_iter=100)):
        a = torch.full((5, 1), alpha, dtype=torch.float64, requires_grad=True)
        gradients.append(torch.autograd.grad(f(x, a), a, u)[0])
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


def test_near_alpha_one():
    """At alpha = 1 + 1e-9 entmax is softmax to 1e-8; their threshold has no digit left for that."""
    x = normal(4, 30)
    assert (F.entmax(x, 1 + 1e-9) - x.softmax(-1)).abs().max() < 1e-8
    assert (theirs.entmax_bisect(x, 1 + 1e-9, n_iter=100) - x.softmax(-1)).abs().max() > 1e-8


@pytest.mark.parametrize(("mine", "other"), [PAIRS["sparsemax"][:2], PAIRS["entmax15"][:2]])
def test_another_axis_with_a_guess_of_the_support(mine, other):
    """Theirs looks for an axis that is not there where k is too small; ours needs no guess."""
    x = 0.01 * normal(3, 8, 5)
    expected = mine(x.movedim(-2, -1)).movedim(-1, -2)
    torch.testing.assert_close(mine(x, -2), expected)
    torch.testing.assert_close(mine(x, -2).sum(-2), torch.ones(3, 5, dtype=torch.float64))
    with pytest.raises((IndexError, RuntimeError)):
        other(x, -2, k=2)


def test_iterations_that_are_ignored():
    """Their sparsemax_bisect takes n_iter and always does 50; ours has no such option and is exact."""
    x = normal(4, 30)
    assert torch.equal(theirs.sparsemax_bisect(x, n_iter=1), theirs.sparsemax_bisect(x, n_iter=50))
    torch.testing.assert_close(F.sparsemax(x), theirs.sparsemax(x), atol=1e-15, rtol=0)
    assert "n_iter" not in inspect.signature(F.entmax).parameters


def test_ignored_rows():
    """Theirs ignores no row at its default of -100, and indexes out of range with it; ours leaves the row out."""
    x = normal(3, 5)
    y = torch.tensor([1, -100, 2])
    torch.testing.assert_close(F.entmax15_loss(x, y), F.entmax15_loss(x[[0, 2]], y[[0, 2]]))
    with pytest.raises((RuntimeError, IndexError)):
        theirs.Entmax15Loss(k=None)(x, y)


def test_half_precision_sums_to_one():
    """Theirs sorts, squares and sums in bfloat16 itself, and its probabilities are off by more than 2%."""
    x = (0.1 * normal(4, 4096)).bfloat16()
    for f in (F.sparsemax, F.entmax15):
        exact = f(x.double())
        torch.testing.assert_close(f(x).double(), exact, rtol=2**-8, atol=0)
        torch.testing.assert_close(f(x).double().sum(-1), torch.ones(4).double(), atol=2**-8, rtol=0)
    wrong = (theirs.entmax15(x).double().sum(-1) - 1).abs().max()
    assert wrong > 0.02
