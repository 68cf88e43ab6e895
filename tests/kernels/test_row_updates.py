"""Optimizer steps of rows: Numba equal to the reference, sums of a table to their gradient, rounding exact."""

import math

import pytest
import torch
from torch.testing import assert_close

import vastmax
from vastmax.kernels import numba, reference
from vastmax.kernels.reference.rounding import stochastic_round
from vastmax.kernels.reference.row_updates import sgd_powers

NUM_ROWS, STEP = 40, 5000
ROUNDING = {torch.float32: {"rtol": 4e-6, "atol": 2e-6}, torch.float64: {"rtol": 1e-12, "atol": 1e-14}}

ADAM = {"step": STEP, "lr": 0.03, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
SGD = {"step": STEP, "lr": 0.03, "momentum": 0.9, "weight_decay": 0.02, "nesterov": False}
CASES = {
    "adagrad": ("adagrad_rows", ["full"], {"lr": 0.3, "eps": 1e-3}),
    "adagrad by row": ("adagrad_rows", ["per row"], {"lr": 0.3, "eps": 1e-3}),
    "adamw": ("adamw_rows", ["full", "full", "counter"], ADAM),
    "adamw by row": ("adamw_rows", ["full", "per row", "counter"], ADAM),
    "adamw of no first moment": ("adamw_rows", [None, "full", "counter"], ADAM | {"betas": (0.0, 0.99)}),
    "adamw by row of no first moment": ("adamw_rows", [None, "per row", "counter"], ADAM | {"betas": (0.0, 0.99)}),
    "adamw of no memory": ("adamw_rows", ["full", "full", "counter"], ADAM | {"betas": (0.5, 0.0)}),
    "adamw of ratio one": ("adamw_rows", ["full", "full", "counter"], ADAM | {"betas": (0.5, 0.25), "step": 9}),
    "sgd": ("sgd_rows", [None, None], SGD | {"momentum": 0.0, "weight_decay": 0.0}),
    "sgd decayed": ("sgd_rows", [None, "counter"], SGD | {"momentum": 0.0}),
    "sgd with momentum": ("sgd_rows", ["full", "counter"], SGD | {"weight_decay": 0.0}),
    "sgd with momentum, decayed": ("sgd_rows", ["full", "counter"], SGD),
    "sgd after Nesterov": ("sgd_rows", ["full", "counter"], SGD | {"nesterov": True}),
}


def problem(case, shape, dtype, seed=0):
    """The name of the kernel, a weight with its state, rows and their gradient, and the options."""
    g = torch.Generator().manual_seed(seed)
    kernel, kinds, options = CASES[case]

    def randn(*size):
        return torch.randn(size, generator=g, dtype=dtype)

    def state(kind):
        if kind == "counter":
            # Some rows made the last step, some missed a few, some all.
            missed = torch.tensor([0, 0, 1, 2, 17, 300, options["step"]])
            missed = missed[torch.randint(len(missed), (NUM_ROWS,), generator=g)]
            return (options["step"] - missed).clamp(min=0).int()
        if kind is None:
            return None
        size = shape if kind == "full" else (shape[0], *(1,) * (len(shape) - 1))
        return randn(*size) if case.startswith("sgd") else randn(*size).square() + 0.1

    tensors = [randn(*shape), *(state(kind) for kind in kinds)]
    rows = torch.randperm(NUM_ROWS, generator=g)[:31]
    return kernel, tensors, rows, randn(31, *shape[1:]), options


def update(module, kernel, tensors, rows, table, runs, options):
    """Copies of the weight and the state after an update."""
    after = [None if tensor is None else tensor.clone() for tensor in tensors]
    assert getattr(module, kernel)(*after, rows, table, runs, **options) is None
    return after


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(NUM_ROWS, 33), (NUM_ROWS, 2, 3), (NUM_ROWS, 1), (NUM_ROWS,)])
@pytest.mark.parametrize("case", CASES)
def test_numba_is_the_reference(case, shape, dtype):
    kernel, tensors, rows, table, options = problem(case, shape, dtype)
    mine = update(numba, kernel, tensors, rows, table, None, options)
    expected = update(reference, kernel, tensors, rows, table, None, options)
    assert not torch.equal(mine[0], tensors[0])
    for a, b, before in zip(mine, expected, tensors, strict=True):
        if before is not None:
            assert_close(a, b, **ROUNDING[dtype])
            untouched = torch.ones(NUM_ROWS, dtype=torch.bool).index_fill(0, rows, False)
            assert torch.equal(a[untouched], before[untouched])


@pytest.mark.parametrize("module", [reference, numba], ids=["reference", "numba"])
@pytest.mark.parametrize("shape", [(NUM_ROWS, 33), (NUM_ROWS,)])
@pytest.mark.parametrize("case", CASES)
def test_sums_of_a_table_are_their_gradient(case, shape, module):
    kernel, tensors, rows, _, options = problem(case, shape, torch.float64)
    g = torch.Generator().manual_seed(1)
    size = math.prod(shape[1:])
    table, coefficient = torch.randn(12, size, generator=g).double(), torch.randn(131, generator=g).double()
    ids, starts = torch.randint(12, (131,), generator=g), torch.arange(31)
    starts[5:] += 7  # runs of one id and of eight
    starts[20:] += 90
    grad = reference.gather_sum(table, ids, starts, coefficient).view(31, *shape[1:])
    summed = update(module, kernel, tensors, rows, table, (ids, starts, coefficient), options)
    given = update(reference, kernel, tensors, rows, grad, None, options)
    for a, b in zip(summed, given, strict=True):
        if a is not None:
            assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("module", [reference, numba], ids=["reference", "numba"])
@pytest.mark.parametrize("case", CASES)
def test_places_of_no_row_make_no_step(case, module):
    """Behind the rows, of runs that are empty: row 0, which is not among the others, stays as it is, too."""
    kernel, tensors, rows, table, options = problem(case, (NUM_ROWS, 3), torch.float64)
    rows, table = rows[rows != 0][:30], table[:30]
    runs = torch.arange(30), torch.arange(30), torch.ones(30, dtype=torch.float64)
    expected = update(reference, kernel, tensors, rows, table, runs, options)
    rows = torch.cat([rows, rows.new_full((4,), -1)])
    runs = runs[0], torch.cat([runs[1], runs[1].new_full((4,), 30)]), runs[2]
    with vastmax.checks("device"):
        found = update(module, kernel, tensors, rows, table, runs, options)
    for a, b in zip(found, expected, strict=True):
        if a is not None:
            assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("module", [reference, numba], ids=["reference", "numba"])
@pytest.mark.parametrize("case", CASES)
def test_no_rows_and_rows_of_no_elements(case, module):
    kernel, tensors, rows, table, options = problem(case, (NUM_ROWS, 3), torch.float32)
    after = update(module, kernel, tensors, rows[:0], table[:0], None, options)
    for a, b in zip(after, tensors, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    kernel, tensors, rows, table, options = problem(case, (NUM_ROWS, 0), torch.float32)
    assert update(module, kernel, tensors, rows, table, None, options)[0].shape == (NUM_ROWS, 0)


@pytest.mark.parametrize("case", CASES)
def test_state_of_other_strides_is_updated_in_place(case):
    kernel, tensors, rows, table, options = problem(case, (NUM_ROWS, 33), torch.float64)
    expected = update(reference, kernel, tensors, rows, table, None, options)
    strided = [None if t is None else t if t.ndim == 1 else t.t().contiguous().t() for t in tensors]
    getattr(numba, kernel)(*strided, rows, table.t().contiguous().t(), **options)
    for a, b in zip(strided, expected, strict=True):
        if a is not None:
            assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_threads_share_the_rows(case):
    kernel, tensors, rows, _, options = problem(case, (NUM_ROWS, 1 << 13), torch.float64)
    table = torch.randn(31, 1 << 13, dtype=torch.float64)
    alone = update(numba, kernel, tensors, rows, table, None, options)
    torch.set_num_threads(3)
    try:
        together = update(numba, kernel, tensors, rows, table, None, options)
    finally:
        torch.set_num_threads(1)
    for a, b in zip(alone, together, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("nesterov", [False, True])
def test_powers_of_a_step_of_zero_gradient(nesterov):
    lr, momentum, decay = 0.1, 0.9, 0.3
    powers = sgd_powers(lr, momentum, decay, nesterov=nesterov)
    w, b = torch.eye(2, dtype=torch.float64)
    for step in range(1, 65):
        grad = decay * w
        b = momentum * b + grad
        w = w - lr * (grad + momentum * b if nesterov else b)
        if step & (step - 1) == 0:
            assert_close(powers[step.bit_length() - 1], torch.stack([w, b]), rtol=1e-13, atol=1e-15)
    assert sgd_powers(10.0, momentum, decay, nesterov=nesterov).shape == (31, 2, 2)  # beyond all bounds, silently


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
def test_stochastic_rounding_has_the_mean_of_the_number_itself(dtype):
    """Every draw of 2^16 equally likely ones, at which the shares of these numbers are exact."""
    dropped = 16 if dtype == torch.bfloat16 else 13
    bits = torch.randint(1 << 31, (200,), generator=torch.Generator().manual_seed(0)).int()
    values = bits.view(torch.float32)
    if dtype == torch.float16:
        values = (
            values.view(torch.int32).remainder(1 << 28).add(0x38800000).view(torch.float32)
        )  # its normal numbers
    limit = torch.finfo(dtype)
    values = values[(values < limit.max) & (values > limit.smallest_normal)]
    values = torch.cat([values, -values])
    assert len(values) > 50
    assert (values.view(torch.int32) % (1 << dropped)).unique().numel() > 40
    uniform = torch.arange(1 << 16).float() / (1 << 16)
    for value in values:
        rounded = stochastic_round(value.expand(1 << 16), dtype, uniform).double()
        assert rounded.mean() == value.double()
        assert len(rounded.unique()) <= 2
        assert (rounded - value.double()).abs().max() <= value.abs().double() * limit.eps


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_what_the_dtype_has_stays(dtype, uniform):
    values = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    rounded = stochastic_round(values.float(), dtype, torch.full(values.shape, uniform))
    assert_close(rounded, values, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALF)
def test_below_the_least_and_beyond_the_largest_number(dtype):
    limit = torch.finfo(dtype)
    least = limit.smallest_normal * limit.eps
    values = torch.tensor([0.25 * least, -0.25 * least, 1.25 * least])
    low, high = (stochastic_round(values, dtype, torch.full((3,), u)).double() for u in (0.2499, 0.25))
    assert low.tolist() == [least, -least, 2 * least]
    assert high.tolist() == [0.0, 0.0, least]
    beyond = torch.tensor([limit.max * (1 + limit.eps / 3), -torch.finfo(torch.float32).max])
    for u in (0.0, 1 - 2**-24):
        assert stochastic_round(beyond, dtype, torch.full((2,), u)).tolist() == [limit.max, -limit.max]
