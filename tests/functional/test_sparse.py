"""Sparse mappings and their losses: optimality conditions, limits, identities, and derivatives of both orders."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from vastmax import functional as F
from vastmax.kernels.reference.tsallis import exponential_moment

ALPHAS = [1.0, 1 + 1e-6, 1.1, 1.5, 1.75, 2.0, 2.5, 4.0, 10.0]
MAPPINGS = {
    "topk_softmax": lambda x, dim=-1: F.topk_softmax(x, 3, dim),
    "sparsemax": F.sparsemax,
    "entmax15": F.entmax15,
    "entmax 1.2": lambda x, dim=-1: F.entmax(x, 1.2, dim),
    "entmax 3": lambda x, dim=-1: F.entmax(x, 3.0, dim),
}
LOSSES = {
    "topk_softmax_loss": lambda x, y, **o: F.topk_softmax_loss(x, y, 3, **o),
    "sparsemax_loss": F.sparsemax_loss,
    "entmax15_loss": F.entmax15_loss,
    "entmax_loss 1.2": lambda x, y, **o: F.entmax_loss(x, y, 1.2, **o),
    "entmax_loss 3": lambda x, y, **o: F.entmax_loss(x, y, 3.0, **o),
}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tsallis_entropy(p, alpha):
    """As it is written, in float64; alpha is not near 1."""
    if alpha == 1:
        return -torch.special.xlogy(p, p).sum(-1)
    return (p - p**alpha).sum(-1) / (alpha * (alpha - 1))


def assert_optimal(logits, p, alpha, atol):
    """Karush, Kuhn and Tucker: log_alpha p = s - A inside the support, and s - A <= -1 / (alpha - 1) outside.

    In probabilities rather than their logarithms: p is exp_alpha(s - A), with A as the largest class has it.
    """
    a = alpha - 1
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]), atol=atol, rtol=0)
    largest, place = logits.max(-1, keepdim=True)
    top = p.gather(-1, place)
    # p^a is linear in s inside the support and at most 0 outside: compare in that scale.
    linear = 1 + torch.special.expm1(a * top.log()) + a * (logits - largest)
    torch.testing.assert_close(torch.where(p > 0, p**a, 0.0), linear.clamp(min=0), atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("logits", "alpha", "expected"),
    [
        ([1.0, 0.8, 0.1], 2.0, [0.6, 0.4, 0.0]),
        ([3.0, 0.0, 0.0], 2.0, [1.0, 0.0, 0.0]),
        ([2.0, 0.0, -math.inf], 1.5, [1.0, 0.0, 0.0]),
        ([0.0, 0.0, -1e4], 1.5, [0.5, 0.5, 0.0]),
        ([1e4, 1e4, -1e4], 2.5, [0.5, 0.5, 0.0]),
        ([0.0, -math.inf, 0.0, 0.0], 1 + 1e-9, [1 / 3, 0.0, 1 / 3, 1 / 3]),
        ([0.0] * 5, 10.0, [0.2] * 5),
    ],
)
def test_known_values(logits, alpha, expected):
    p = F.entmax(torch.tensor(logits, dtype=torch.float64), alpha)
    torch.testing.assert_close(p, torch.tensor(expected, dtype=torch.float64), atol=1e-15, rtol=1e-13)


def test_one_half_by_hand():
    # x = s / 2 in the support {0, 1}: (x0 - t)^2 + (x1 - t)^2 = 1, t the smaller root.
    s = torch.tensor([0.5, 0.0, -3.0], dtype=torch.float64)
    t = 0.125 - math.sqrt(0.5 - 0.125**2)
    expected = torch.tensor([(0.25 - t) ** 2, t**2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(F.entmax15(s), expected)


def test_special_cases():
    x = 2 * normal(4, 9)
    torch.testing.assert_close(F.entmax(x, 2.0), F.sparsemax(x))
    torch.testing.assert_close(F.entmax(x, 1.5), F.entmax15(x))
    torch.testing.assert_close(F.topk_softmax(x, 9), F.softmax(x))
    torch.testing.assert_close(F.topk_softmax(x, 1), F.hardmax(x))
    for alpha in (1.0, torch.tensor(1.0), torch.ones(4, 1), 1 + 1e-12):
        torch.testing.assert_close(F.entmax(x, alpha), F.softmax(x))
        torch.testing.assert_close(F.log_entmax(x, alpha), F.log_softmax(x))


def test_topk_softmax_is_softmax_of_a_subset():
    x = normal(3, 8)
    p = F.topk_softmax(x, 3)
    values, indices = x.topk(3)
    torch.testing.assert_close(p.gather(-1, indices), values.softmax(-1))
    assert ((p > 0).sum(-1) == 3).all()


@pytest.mark.parametrize("alpha", ALPHAS)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.01, 1.0, 30.0]), classes=st.integers(1, 30))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_optimality(alpha, seed, scale, classes):
    logits = scale * normal(3, classes, seed=seed)
    assert_optimal(logits, F.entmax(logits, alpha), alpha, atol=1e-13)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_optimality_with_many_classes(alpha):
    for scale in (0.1, 5.0):
        logits = scale * normal(2, 50_000)
        assert_optimal(logits, F.entmax(logits, alpha), alpha, atol=1e-12)


@pytest.mark.parametrize("alpha", [2.5, 4.0, 10.0])
@pytest.mark.parametrize("least", [1e-3, 1e-9])
def test_small_probabilities_of_large_alpha(alpha, least):
    """No rounded threshold gives these: two classes whose logits differ by log_alpha(1 - p) - log_alpha p."""
    a = alpha - 1
    gap = (math.exp(a * math.log1p(-least)) - least**a) / a
    logits = torch.tensor([0.0, -gap], dtype=torch.float64)
    torch.testing.assert_close(F.entmax(logits, alpha)[1].item(), least, atol=4e-16, rtol=0)


@pytest.mark.parametrize("name", MAPPINGS)
@pytest.mark.parametrize("dim", [0, 1, -2, -1])
def test_class_axis(name, dim):
    x = normal(4, 5, 6)
    torch.testing.assert_close(MAPPINGS[name](x, dim).movedim(dim, -1), MAPPINGS[name](x.movedim(dim, -1)))


def test_alpha_for_each_row():
    x = normal(3, 4, 6)
    alpha = torch.tensor([1.0, 1.5, 2.0, 3.0], dtype=torch.float64).view(1, 4, 1)
    for found, moved in ((F.entmax(x, alpha), x), (F.entmax(x.mT, alpha.mT, -2).mT, x)):
        for row, value in enumerate(alpha.flatten().tolist()):
            torch.testing.assert_close(found[:, row], F.entmax(moved[:, row], value))


@pytest.mark.parametrize("name", MAPPINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_precision(name, dtype):
    x = (3 * normal(4, 2000)).to(dtype)
    p = MAPPINGS[name](x)
    assert p.dtype == dtype
    torch.testing.assert_close(p.double(), MAPPINGS[name](x.double()), rtol=torch.finfo(dtype).eps, atol=1e-6)
    if dtype == torch.float32:
        torch.testing.assert_close(p.double().sum(-1), torch.ones(4).double(), atol=2e-7, rtol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_log_entmax(alpha):
    x = 2 * normal(3, 20)
    log_p = F.log_entmax(x, alpha)
    torch.testing.assert_close(log_p.exp(), F.entmax(x, alpha))
    far = F.log_entmax(torch.tensor([0.0, -2000.0], dtype=torch.float64), 1 + 1e-12)
    torch.testing.assert_close(far[1].item(), -2000.0, rtol=1e-8, atol=0)


@pytest.mark.parametrize("alpha", [1 + 3e-6, 1.3, 1.5, 2.0, 2.5, 6.0])
def test_derivatives_of_entmax(alpha):
    x = (0.3 * normal(3, 6)).requires_grad_()
    a = torch.tensor([[alpha], [1.4], [alpha]], dtype=torch.float64, requires_grad=True)
    support = F.entmax(x, a).detach() > 0
    assert gradcheck(F.entmax, (x, a))
    assert gradgradcheck(F.entmax, (x, a))
    inside = lambda x, a: F.log_entmax(x, a)[support]  # noqa: E731
    assert gradcheck(inside, (x, a))
    assert gradgradcheck(inside, (x, a))


@pytest.mark.parametrize("function", [F.entmax, F.log_entmax])
def test_derivative_at_alpha_one_is_the_limit(function):
    x, u = normal(3, 6), normal(3, 6, seed=1)

    def derivative(alpha):
        alpha = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad((u * function(x, alpha)).sum(), alpha)[0]

    h = 1e-4
    value = lambda alpha: (u * function(x, alpha)).sum()  # noqa: E731
    one_sided = (-3 * value(1.0) + 4 * value(1 + h) - value(1 + 2 * h)) / (2 * h)
    torch.testing.assert_close(derivative(1.0), one_sided, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(derivative(1.0), derivative(1 + 1e-10), rtol=1e-8, atol=1e-9)


def test_gradient_where_a_slope_overflows():
    gap = (math.exp(9 * math.log1p(-1e-6)) - 1e-54) / 9
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([0.0, -gap], dtype=dtype, requires_grad=True)
        p = F.entmax(x, 10.0)
        assert p[1] > 0
        (found,) = torch.autograd.grad(p[1], x)
        # p_1 - p_0 rises with s_1 - s_0 at 2 g_0 g_1 / (g_0 + g_1), and g_0 is about 1.
        torch.testing.assert_close(found, torch.tensor([-1.0, 1.0], dtype=dtype), rtol=2e-5, atol=0)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_exponential_moment(power):
    z = -torch.logspace(-14, 1, 60, dtype=torch.float64).requires_grad_()
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(200))
    t = (nodes + 1) / 2
    expected = (weights / 2 * t**power * torch.exp(z.detach().unsqueeze(-1) * t)).sum(-1)
    torch.testing.assert_close(exponential_moment(z.detach(), power), expected, rtol=2e-13, atol=0)
    at_zero = exponential_moment(torch.zeros(1, dtype=torch.float64), power).item()
    torch.testing.assert_close(at_zero, 1 / (power + 1), rtol=5e-14, atol=0)


@pytest.mark.parametrize("alpha", [1.0, 1 + 1e-9, 1.2, 1.5, 2.0, 3.0, 10.0])
def test_entmax_loss_is_its_definition(alpha):
    x, p = normal(4, 7), F.softmax(normal(4, 7, seed=3))
    y = torch.tensor([0, 6, 3, 3])
    q = F.entmax(x, alpha)
    exact = 1.0 if abs(alpha - 1) < 1e-6 else alpha
    conjugate = (q * x).sum(-1) + tsallis_entropy(q, exact)
    atol = 1e-7 if exact != alpha else 1e-13
    for target, t in ((y, torch.nn.functional.one_hot(y, 7).double()), (p, p)):
        expected = conjugate - (t * x).sum(-1) - tsallis_entropy(t, exact)
        found = F.entmax_loss(x, target, alpha, reduction="none")
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_losses_that_are_known():
    x, y = normal(4, 7), torch.tensor([0, 6, 3, 3])
    p = F.softmax(normal(4, 7, seed=3))
    torch.testing.assert_close(F.entmax_loss(x, y, 1.0), F.cross_entropy(x, y))
    torch.testing.assert_close(F.entmax_loss(x, p, 1.0), F.kl_divergence(x, p))
    torch.testing.assert_close(F.topk_softmax_loss(x, y, 7), F.cross_entropy(x, y))
    t = torch.nn.functional.one_hot(y, 7).double()
    squared = (x - t).square().sum(-1) / 2 - (x - F.sparsemax(x)).square().sum(-1) / 2
    torch.testing.assert_close(F.sparsemax_loss(x, y, reduction="none"), squared)


def test_topk_softmax_loss_by_enumeration():
    x = normal(5, 6)
    for y in range(6):
        target = torch.full((5,), y)
        others = x[:, [c for c in range(6) if c != y]].sort(-1, descending=True).values
        for k in (2, 3, 6):
            compared = torch.cat([x[:, [y]], others[:, : k - 1]], -1)
            expected = compared.logsumexp(-1) - x[:, y]
            torch.testing.assert_close(F.topk_softmax_loss(x, target, k, reduction="none"), expected)
            inside = F.topk_softmax(x, k)[:, y]
            torch.testing.assert_close(expected[inside > 0], -inside[inside > 0].log())


@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0, 3.0])
def test_gradient_is_probability_less_target(alpha):
    x = normal(4, 7).requires_grad_()
    y, u = torch.tensor([0, 6, 3, 3]), normal(4, seed=9)
    p = F.softmax(normal(4, 7, seed=3))
    for target, t in ((y, torch.nn.functional.one_hot(y, 7).double()), (p, p)):
        (found,) = torch.autograd.grad(F.entmax_loss(x, target, alpha, reduction="none"), x, u)
        expected = u.unsqueeze(-1) * (F.entmax(x, alpha) - t)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("alpha", [1 + 3e-6, 1.3, 1.5, 2.0, 2.5, 5.0])
@pytest.mark.parametrize("soft", [False, True])
def test_derivatives_of_entmax_loss(alpha, soft):
    x = (0.3 * normal(3, 6)).requires_grad_()
    a = torch.tensor([[alpha], [1.4], [alpha]], dtype=torch.float64, requires_grad=True)
    if soft:
        z = normal(3, 6, seed=2).requires_grad_()
        f = lambda x, a, z: F.entmax_loss(x, z.softmax(-1), a, reduction="none")  # noqa: E731
        inputs = (x, a, z)
    else:
        f = lambda x, a: F.entmax_loss(x, torch.tensor([0, 5, 2]), a, reduction="none")  # noqa: E731
        inputs = (x, a)
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)


def test_derivatives_of_topk_softmax():
    x = normal(4, 6).requires_grad_()
    y = torch.tensor([0, 5, 2, 3])
    assert gradgradcheck(lambda x: F.topk_softmax(x, 3), x)
    f = lambda x: F.topk_softmax_loss(x, y, 3, reduction="none")  # noqa: E731
    assert gradcheck(f, x)
    assert gradgradcheck(f, x)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_at_least_zero_and_finite(name):
    x = normal(64, 9, dtype=torch.float32)
    y = torch.arange(64) % 9
    for scale in (1e-3, 1.0, 1e4):
        z = (scale * x).requires_grad_()
        loss = LOSSES[name](z, y, reduction="none")
        assert (loss >= 0).all()
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), z)[0].isfinite().all()
    shift = LOSSES[name]((x + 4096.0).double(), y, reduction="none")
    torch.testing.assert_close(LOSSES[name](x + 4096.0, y, reduction="none").double(), shift, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_zero_from_the_margin_on(alpha):
    margin = 1 / (alpha - 1)
    x = torch.tensor([[margin, 0.0, 0.0], [margin * 0.9, 0.0, 0.0]], dtype=torch.float64)
    loss = F.entmax_loss(x, torch.tensor([0, 0]), alpha, reduction="none")
    assert loss[0] == 0
    assert loss[1] > 1e-4
    z = 0.1 * normal(2, 3)
    target = F.entmax(z, alpha)
    assert (F.entmax_loss(z.flip(-1), target, alpha, reduction="none") > 1e-4).all()
    torch.testing.assert_close(F.entmax_loss(z, target, alpha).item(), 0.0, atol=1e-15, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_conventions_of_a_loss(name):
    loss, x = LOSSES[name], normal(2, 3, 6).requires_grad_()
    y = torch.tensor([[0, 1, -100], [5, -100, 2]])
    w = normal(2, 3, seed=5).abs()
    kept = y != -100
    rows = loss(x[kept], y[kept], reduction="none")
    found = loss(x, y, reduction="none")
    torch.testing.assert_close(found[kept], rows)
    assert (found[~kept] == 0).all()
    torch.testing.assert_close(loss(x, y), rows.mean())
    torch.testing.assert_close(loss(x, y, reduction="sum"), rows.sum())
    torch.testing.assert_close(loss(x, y, sample_weight=w), (w[kept] * rows).sum() / w[kept].sum())
    torch.testing.assert_close(loss(x, y.clamp(min=0), ignore_index=5, reduction="none")[1, 0].item(), 0.0)
    (gradient,) = torch.autograd.grad(loss(x, y), x)
    assert (gradient[~kept] == 0).all()
    torch.testing.assert_close(loss(x[0, 0], y[0, 0]), rows[0])
    half = x.detach().bfloat16()
    assert loss(half, y).dtype == torch.float32
    torch.testing.assert_close(loss(half, y), loss(half.float(), y))
    with pytest.raises(ValueError, match="target"):
        loss(x, y.clamp(min=0) + 1)
    with pytest.raises(ValueError, match="reduction"):
        loss(x, y, reduction="average")


@pytest.mark.parametrize("name", MAPPINGS)
def test_logits_that_are_not(name):
    for row in ([math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3):
        with pytest.raises(ValueError, match="logits: expected a finite largest logit"):
            MAPPINGS[name](torch.tensor([row]))
    with pytest.raises(TypeError, match="logits"):
        MAPPINGS[name](torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="logits"):
        MAPPINGS[name](torch.zeros(2, 0))
    assert MAPPINGS[name](torch.zeros(0, 3)).shape == (0, 3)
    masked = torch.tensor([[0.1, -math.inf, 0.3, 0.2]], dtype=torch.float64)
    kept = MAPPINGS[name](masked[:, [0, 2, 3]])
    torch.testing.assert_close(MAPPINGS[name](masked)[:, [0, 2, 3]], kept)
    assert MAPPINGS[name](masked)[0, 1] == 0


@pytest.mark.parametrize("alpha", [0.9, math.nan, math.inf, torch.tensor([1.5, 0.5, 2.0]).unsqueeze(-1)])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=r"alpha: expected .*at least 1"):
        F.entmax(torch.zeros(3, 4), alpha)


def test_alpha_that_does_not_fit():
    for shape in ((4,), (2, 1), (1, 3, 1)):
        with pytest.raises(ValueError, match="alpha: expected a shape"):
            F.entmax(torch.zeros(3, 4), torch.full(shape, 1.5))
    with pytest.raises(TypeError, match="alpha"):
        F.entmax(torch.zeros(3, 4), torch.tensor(2))
    with pytest.raises(TypeError, match="alpha"):
        F.entmax_loss(torch.zeros(3, 4), torch.tensor([0, 1, 2]), "2")


@pytest.mark.parametrize("mapping", [F.entmax, F.log_entmax])
def test_alpha_is_no_bool(mapping):
    with pytest.raises(TypeError, match="alpha: expected a number, got True"):
        mapping(torch.zeros(3, 4), True)


@pytest.mark.parametrize("name", MAPPINGS)
@pytest.mark.parametrize("dim", [2, 7, -3])
def test_axis_out_of_range(name, dim):
    with pytest.raises(ValueError, match=rf"dim: expected an axis of logits of shape \(3, 4\), got {dim}"):
        MAPPINGS[name](torch.zeros(3, 4), dim=dim)


@pytest.mark.parametrize("k", [0, 5, 1.5])
def test_k_out_of_range(k):
    for call in (F.topk_softmax, lambda x, k: F.topk_softmax_loss(x, torch.tensor([0]), k)):
        with pytest.raises((ValueError, TypeError), match="k: expected"):
            call(torch.zeros(1, 4), k)


def test_a_target_alone_has_no_loss():
    with pytest.raises(ValueError, match="k: expected at least 2"):
        F.topk_softmax_loss(torch.zeros(1, 4), torch.tensor([0]), 1)
    assert F.topk_softmax_loss(torch.zeros(1, 1), torch.tensor([0]), 1) == 0
