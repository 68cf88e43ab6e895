"""The entmax kernels: Numba's equal the reference to rounding, at the edges of their domain too."""

import math

import pytest
import torch

import vastmax
from vastmax.functional import entmax, entmax_loss
from vastmax.kernels import reference, use

numba = pytest.importorskip("vastmax.kernels.numba")

ORDERS = {
    "1": 0.0,
    "1.01": 0.01,
    "1.25": 0.25,
    "1.5": 0.5,
    "1.75": 0.75,
    "2": 1.0,
    "2.5": 1.5,
    "3": 2.0,
    "per row": [0.0, 0.01, 0.25, 0.5, 0.9, 1.0, 1.2, 2.0],
}
ROWS = 8


@pytest.fixture(params=ORDERS.values(), ids=ORDERS)
def order(request):
    return torch.tensor(request.param, dtype=torch.float64).reshape(-1, 1)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def ties():
    return torch.randint(3, (ROWS, 300)).double()


def masked():
    return (
        normal(ROWS, 300).masked_fill(torch.rand(ROWS, 300) < 0.7, -torch.inf).index_fill(1, torch.tensor([7]), 0.1)
    )


def one_hot():
    return torch.full((ROWS, 200), -torch.inf, dtype=torch.float64).index_fill(1, torch.tensor([150]), 3.0)


LOGITS = {
    "normal": lambda: normal(ROWS, 1000),
    "close": lambda: 0.01 * normal(ROWS, 300),
    "wide": lambda: 1e4 * normal(ROWS, 300),
    "far from zero": lambda: 4096 + normal(ROWS, 300),
    "falling": lambda: normal(ROWS, 400).sort(-1, descending=True).values,
    "ties": ties,
    "equal": lambda: torch.full((ROWS, 257), -2.5, dtype=torch.float64),
    "masked": masked,
    "one-hot": one_hot,
    "one class": lambda: normal(ROWS, 1),
    "one chunk": lambda: normal(ROWS, 128),
    "one more": lambda: normal(ROWS, 129),
    "no row": lambda: normal(0, 9),
}


@pytest.fixture(params=LOGITS.values(), ids=LOGITS)
def logits(request):
    torch.manual_seed(0)
    return request.param()


def of_rows(order, logits):
    """An order for each of no rows is none."""
    return order[: len(logits)] if len(order) > 1 else order


@pytest.mark.parametrize("log", [False, True])
def test_entmax_float64(logits, order, log):
    order = of_rows(order, logits)
    found, expected = numba.entmax(logits, order, log=log), reference.entmax(logits, order, log=log)
    # A probability below the rounding of the largest may be there or not.
    if log:
        found, expected = found.exp(), expected.exp()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("log", [False, True])
def test_the_reference_is_the_same_without_a_look_at_what_it_has(logits, order, log):
    order = of_rows(order, logits)
    expected = reference.entmax(logits, order, log=log)
    with vastmax.checks("device"):
        found = reference.entmax(logits, order, log=log)
    if log:
        found, expected = found.exp(), expected.exp()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("log", [False, True])
def test_entmax_float32(logits, order, log):
    """Every probability is that of float64, rounded: as exact as float32 can be."""
    order, logits = of_rows(order, logits), logits.float()
    found = numba.entmax(logits, order, log=log)
    assert found.dtype == torch.float32
    expected = reference.entmax(logits.double(), order, log=log)
    torch.testing.assert_close(found.double(), expected, rtol=1.2e-7, atol=1e-14)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entmax_gradient(logits, order, log, dtype):
    order, logits = of_rows(order, logits), logits.to(dtype)
    found = reference.entmax(logits, order, log=log)
    upstream = torch.randn_like(found)
    upstream[found == (-torch.inf if log else 0)] = torch.nan  # no one looks there
    mine = numba.entmax_gradient(found, order, upstream, log=log, of_order=True)
    theirs = reference.entmax_gradient(found.double(), order, upstream.double(), log=log, of_order=True)
    size = theirs[0].abs()
    log_p = found.double() if log else found.double().log()
    moved = torch.where(size > 0, size * log_p.square(), 0.0).sum(-1, keepdim=True)
    tolerance = 2e-13 if dtype == torch.float64 else 1e-7
    # Sums that cancel are as exact as their largest terms.
    for a, b, scale in zip(mine, theirs, (size.amax(-1, keepdim=True), moved), strict=True) if len(logits) else ():
        assert a.dtype == dtype
        torch.testing.assert_close(a.double() / (1 + scale), b / (1 + scale), rtol=0, atol=tolerance)
    assert numba.entmax_gradient(found, order, upstream, log=log, of_order=False)[1] is None


def test_gradient_of_a_smallest_probability():
    """Past any slope that a number can hold the smallest probability moves as all others do not."""
    found = torch.tensor([[1 - 1e-30, 1e-30]], dtype=torch.float64)
    for kernels in (reference, numba):
        order, upstream = torch.tensor([[30.0]], dtype=torch.float64), torch.tensor([[0.3, 2.0]]).double()
        grad, _ = kernels.entmax_gradient(found, order, upstream, log=False, of_order=False)
        torch.testing.assert_close(grad, torch.tensor([[-1.7, 1.7]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conjugate_and_entropy_slope(logits, order, dtype):
    order, logits = of_rows(order, logits), logits.to(dtype)
    probability = reference.entmax(logits, order, log=False)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-7, "atol": 1e-9}
    wide = probability.double()
    for found, expected in (
        (
            numba.entmax_conjugate(logits, probability, order),
            reference.entmax_conjugate(logits.double(), wide, order),
        ),
        (numba.tsallis_entropy_slope(probability, order), reference.tsallis_entropy_slope(wide, order)),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, **tolerance)


def test_first_moment_where_its_formula_changes():
    """Two equal probabilities and an order that takes the argument of the moment past -1."""
    p = torch.full((3, 2), 0.5, dtype=torch.float64)
    order = torch.tensor([[1.0], [1.0], [1.0]]).double() * torch.tensor([[0.999], [1.0], [1.001]]) / math.log(2)
    torch.testing.assert_close(numba.tsallis_entropy_slope(p, order), reference.tsallis_entropy_slope(p, order))


@pytest.mark.parametrize("alpha", [1.25, 1.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_functions_by_both(alpha, dtype):
    """Other axes, half precision, learned alpha and non-contiguous gradients, by autograd."""
    torch.manual_seed(1)
    x, u = torch.randn(3, 40, 5).to(dtype), torch.randn(5, 40, 3).to(dtype).permute(2, 1, 0)
    y = torch.randint(5, (3, 40))
    found = {}
    for backend in ("torch", "numba"):
        z, a = x.clone().requires_grad_(), torch.full((3, 1, 5), alpha, requires_grad=True)
        b = torch.tensor(alpha, requires_grad=True)
        with use(backend):
            p, loss = entmax(z, a, 1), entmax_loss(z, y, b)
            found[backend] = (p, loss, *torch.autograd.grad([p, loss], [z, a, b], [u, torch.tensor(0.7)]))
    tolerance = 2e-5 if dtype == torch.float32 else 2**-7
    for mine, theirs in zip(found["numba"], found["torch"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance / 10)


def test_loss_spares_the_gradient_of_the_mapping(monkeypatch):
    """At its maximum a change of p changes nothing: its gradient is not even asked for."""

    def never(*_, **__):
        raise AssertionError("asked for")

    for module in (reference, numba):
        monkeypatch.setattr(module, "entmax_gradient", never)
    x = torch.randn(3, 40, requires_grad=True)
    entmax_loss(x, torch.tensor([1, 2, 3]), 1.5).backward()
    assert x.grad.isfinite().all()
