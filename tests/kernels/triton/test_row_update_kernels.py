"""Triton's optimizer steps of some rows are those of the reference, in weight and state."""

import pytest
import torch

from vastmax.kernels import reference, triton

NUM_CLASSES = 9
SHAPES = [(5,), (), (3, 7), (300,)]


def strided(tensor):
    """The same numbers, every other one in memory."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def problem(device, shape, with_runs, dtype=torch.float32):
    """A weight and rows to update, their gradient as a table or as runs of a table's rows."""
    weight = strided(torch.randn(NUM_CLASSES, *shape, device=device).to(dtype))
    rows = torch.tensor([7, 0, 3, 8], device=device)
    if not with_runs:
        return weight, rows, (strided(torch.randn(4, *shape, device=device)), None)
    size = weight[0].numel()
    lengths = torch.tensor([1, 40, 2, 3], device=device)
    runs = torch.randint(6, (46,), device=device), lengths.cumsum(0) - lengths, torch.rand(46, device=device)
    # Sums without cancellation, whose rounding the steps would enlarge.
    table = torch.rand(6, size, device=device) * torch.randn(size, device=device)
    return weight, rows, (strided(table), runs)


def state(device, shape, per_row=False):
    whole = (NUM_CLASSES, *(1 for _ in shape)) if per_row else (NUM_CLASSES, *shape)
    return strided(torch.rand(whole, device=device) + 0.1)


def last_steps(device):
    return strided(torch.tensor([20, 3, 3, 17, 3, 3, 3, 0, 11], device=device))


def assert_same_step(name, weight, states, rows, gradient, **options):
    """Take the step with both, and compare all that they write."""

    def taken(kernels):
        tensors = [None if x is None else x.clone() for x in (weight, *states)]
        getattr(kernels, name)(*tensors, rows, *gradient, **options)
        return tensors

    for before, found, expected in zip((weight, *states), taken(triton), taken(reference), strict=True):
        if before is not None:
            assert not expected.equal(before)
            torch.testing.assert_close(found, expected, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("with_runs", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_adagrad_rows(device, shape, per_row, with_runs):
    weight, rows, gradient = problem(device, shape, with_runs)
    assert_same_step("adagrad_rows", weight, [state(device, shape, per_row)], rows, gradient, lr=0.3, eps=1e-3)


@pytest.mark.parametrize("with_runs", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.0, 0.999), (0.95, 0.9025), (0.9, 0.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_adamw_rows(device, shape, betas, per_row, with_runs):
    weight, rows, gradient = problem(device, shape, with_runs)
    mean = None if betas[0] == 0 else state(device, shape)
    states = [mean, state(device, shape, per_row), last_steps(device)]
    options = {"step": 20, "lr": 0.02, "betas": betas, "eps": 1e-6, "weight_decay": 0.1}
    assert_same_step("adamw_rows", weight, states, rows, gradient, **options)


@pytest.mark.parametrize("with_runs", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.0, 0.1), (0.9, 0.0), (0.9, 0.1)])
@pytest.mark.parametrize("shape", SHAPES)
def test_sgd_rows(device, shape, momentum, weight_decay, nesterov, with_runs):
    weight, rows, gradient = problem(device, shape, with_runs)
    states = [state(device, shape) if momentum else None, last_steps(device) if momentum or weight_decay else None]
    options = {"step": 20, "lr": 0.2, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    assert_same_step("sgd_rows", weight, states, rows, gradient, **options)


def test_a_row_that_missed_a_million_steps(device):
    """Powers of numbers near 1, which float32 would not give."""
    weight, rows, gradient = problem(device, (5,), False)
    last_step = torch.full((NUM_CLASSES,), 1000, device=device)
    states = [state(device, (5,)), state(device, (5,)), last_step]
    options = {"step": 1_001_000, "lr": 1e-5, "betas": (0.999999, 0.9999999), "eps": 1e-6, "weight_decay": 0.1}
    assert_same_step("adamw_rows", weight, states, rows, gradient, **options)
    options = {"step": 1_001_000, "lr": 1e-4, "momentum": 0.99, "weight_decay": 1e-4, "nesterov": False}
    assert_same_step("sgd_rows", weight, [states[0], last_step], rows, gradient, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_as_in_the_reference(device, dtype):
    weight, rows, gradient = problem(device, (64,), False, dtype)
    weight[7, :4] = torch.tensor([0.0, -0.0, 1e-7, 6e4], device=device).to(dtype)
    gradient[0][0, :2] = 0
    total = state(device, (64,))
    for uniform in (None, torch.rand(4, 64, device=device)):
        found, expected = weight.clone(), weight.clone()
        options = {"lr": 0.01, "eps": 1e-3, "uniform": uniform}
        triton.adagrad_rows(found, total.clone(), rows, *gradient, **options)
        reference.adagrad_rows(expected, total.clone(), rows, *gradient, **options)
        assert not expected.equal(weight)
        # The float32 numbers that are rounded may differ in their last bit, and then, rarely, the result does.
        different = found != expected
        assert different.sum() <= 2
        torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=0)


def test_no_rows(device):
    weight = torch.randn(4, 3, device=device)
    before = weight.clone()
    none = torch.zeros(0, dtype=torch.int64, device=device)
    triton.adagrad_rows(weight, torch.ones_like(weight), none, torch.zeros(0, 3, device=device), lr=0.1, eps=0.0)
    assert weight.equal(before)


def test_rows_past_32_bits(device):
    stride = 1 << 28
    memory = torch.empty(NUM_CLASSES * stride, dtype=torch.bfloat16, device=device).view(NUM_CLASSES, stride)
    weight, rows, gradient = problem(device, (5,), False, torch.bfloat16)
    distant, total = memory[:, :5].copy_(weight), state(device, (5,))
    triton.adagrad_rows(distant, total.clone(), rows, *gradient, lr=0.3, eps=1e-3)
    reference.adagrad_rows(weight, total, rows, *gradient, lr=0.3, eps=1e-3)
    torch.testing.assert_close(distant.clone(), weight, rtol=2**-8, atol=0)


@pytest.mark.parametrize("name", ["adagrad_rows", "adamw_rows", "sgd_rows"])
def test_places_of_no_row_make_no_step(device, name):
    weight, rows, (table, (ids, starts, coefficient)) = problem(device, (5,), True)
    rows = torch.tensor([7, 1, 3, 8], device=device)  # not row 0, which must stay as it is
    own = {"adagrad_rows": [], "adamw_rows": [state(device, (5,))], "sgd_rows": []}[name]
    states = [*own, state(device, (5,)), *([] if name == "adagrad_rows" else [last_steps(device)])]
    options = {
        "adagrad_rows": {"lr": 0.3, "eps": 1e-3},
        "adamw_rows": {"step": 20, "lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1},
        "sgd_rows": {"step": 20, "lr": 0.2, "momentum": 0.9, "weight_decay": 0.1, "nesterov": False},
    }[name]
    expected = [x.clone() for x in (weight, *states)]
    getattr(triton, name)(*expected, rows, table, (ids, starts, coefficient), **options)
    found = [x.clone() for x in (weight, *states)]
    none = rows.new_full((3,), -1)
    starts = torch.cat([starts, starts.new_full((3,), len(ids))])
    getattr(triton, name)(*found, torch.cat([rows, none]), table, (ids, starts, coefficient), **options)
    for one, other in zip(found, expected, strict=True):  # the runs are summed in tiles of another shape
        torch.testing.assert_close(one, other, rtol=3e-6, atol=1e-6)
