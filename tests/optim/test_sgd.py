import copy

import pytest
import torch
from row_gradients import random_rows, sparse
from torch import nn
from torch.testing import assert_close

from vastmax import kernels
from vastmax.optim import SGD

VARIANTS = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.3},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, "nesterov": True},
]
every_variant = pytest.mark.parametrize("options", VARIANTS)
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run(weight, grads, optimizer_class=SGD, **options):
    """The weight and the state after a step with each gradient."""
    param = nn.Parameter(weight.clone())
    optimizer = optimizer_class([param], **options)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param.detach(), optimizer.state[param]


@every_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dense_gradients_follow_torch_sgd(options, dtype):
    g = generator()
    shapes = [(5, 33), (7,), (), (3, 4, 2)]
    start = [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]
    start.append(torch.randn(6, 8, generator=g, dtype=dtype).t())
    ours, theirs = ([nn.Parameter(p.clone(memory_format=torch.preserve_format)) for p in start] for _ in range(2))
    assert not ours[-1].is_contiguous()
    optimizers = [SGD(ours, **options), torch.optim.SGD(theirs, **options)]
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=g, dtype=dtype)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    rtol = {torch.float64: 1e-13, torch.float32: 2e-6}[dtype]
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=rtol, atol=rtol)


@every_variant
@pytest.mark.parametrize("shape", [(9, 5), (9,)])
def test_rows_touched_at_every_step_follow_torch_sgd(options, shape):
    g = generator(1)
    weight = torch.randn(shape, generator=g, dtype=torch.float64)
    grads = [random_rows(shape, 9, g, torch.float64) for _ in range(6)]
    ours, _ = run(weight, grads, **options)
    theirs, _ = run(weight, [grad.to_dense() for grad in grads], torch.optim.SGD, **options)
    assert_close(ours, theirs, **EXACT)


@every_variant
@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("missed", [1, 2, 7, 100, 1023])
def test_a_touched_row_is_where_as_many_steps_of_zero_gradient_would_have_taken_it(options, missed, backend):
    """Momentum from before the gap, weight decay within it, and rows that had never been touched."""
    g = generator(2)
    weight = torch.randn(6, 3, generator=g, dtype=torch.float64)
    first = [sparse([0, 1, 2, 4], torch.randn(4, 3, generator=g, dtype=torch.float64), 6) for _ in range(2)]
    gap = [sparse([5], torch.randn(1, 3, generator=g, dtype=torch.float64), 6) for _ in range(missed)]
    last = sparse([0, 2, 3], torch.randn(3, 3, generator=g, dtype=torch.float64), 6)
    grads = [*first, *gap, last]
    with kernels.use(backend):
        ours, state = run(weight, grads, **options)
    theirs, expected = run(weight, [grad.to_dense() for grad in grads], torch.optim.SGD, **options)
    assert_close(ours[[0, 2, 3]], theirs[[0, 2, 3]], **EXACT)
    if options.get("momentum"):
        assert_close(state["momentum_buffer"][[0, 2, 3]], expected["momentum_buffer"][[0, 2, 3]], **EXACT)
        assert not torch.allclose(ours[[1, 4]], theirs[[1, 4]], atol=1e-9), "rows that were not touched wait"


@every_variant
@pytest.mark.parametrize("seed", range(3))
def test_sparse_empty_and_dense_gradients_in_turn_end_where_torch_sgd_does(options, seed):
    g = generator(seed)
    shape = (6, 3)
    weight = torch.randn(shape, generator=g, dtype=torch.float64)
    grads = [random_rows(shape, k, g, torch.float64) for k in (2, 0, 3, 1, 2, 0, 0, 2, 4)]
    for t in (3 - seed, 7, len(grads) + 2):  # the last brings every row up to date
        grads.insert(t, torch.randn(shape, generator=g, dtype=torch.float64))
    ours, _ = run(weight, grads, **options)
    dense = [grad.to_dense() if grad.is_sparse else grad for grad in grads]
    theirs, _ = run(weight, dense, torch.optim.SGD, **options)
    assert_close(ours, theirs, **EXACT)


def test_only_what_the_options_need_is_kept():
    grads = [sparse([1, 3], torch.randn(2, 2), 5)]
    assert set(run(torch.ones(5, 2), grads)[1]) == {"step"}
    assert set(run(torch.ones(5, 2), grads, weight_decay=0.1)[1]) == {"step", "last_step"}
    _, state = run(torch.ones(5, 2), grads, momentum=0.9)
    assert set(state) == {"step", "last_step", "momentum_buffer"}
    assert state["last_step"].dtype == torch.int32
    assert state["last_step"].tolist() == [0, 1, 0, 1, 0]


def test_momentum_that_is_switched_on_later():
    param = nn.Parameter(torch.ones(3, 1, dtype=torch.float64))
    optimizer = SGD([param], lr=1.0)
    for momentum in (0.0, 0.5, 0.5):
        optimizer.param_groups[0]["momentum"] = momentum
        param.grad = sparse([1], torch.ones(1, 1, dtype=torch.float64), 3)
        optimizer.step()
    assert param.flatten().tolist() == [1.0, 1 - 1 - 1 - 1.5, 1.0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_checkpoint_of_torch_sgd_goes_on(momentum):
    g = generator(4)
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": 0.3}
    weight = torch.randn(5, 3, generator=g, dtype=torch.float64)
    grads = [torch.randn(5, 3, generator=g, dtype=torch.float64) for _ in range(3)]
    grads += [random_rows((5, 3), k, g, torch.float64) for k in (2, 0, 5)]
    theirs, ours = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    sgd, optimizer = torch.optim.SGD([theirs], **options), SGD([ours])
    for number, grad in enumerate(grads):
        if number == 2:
            optimizer.load_state_dict(copy.deepcopy(sgd.state_dict()))
            ours.data.copy_(theirs.data)
        theirs.grad = grad.to_dense() if grad.is_sparse else grad
        sgd.step()
        if number >= 2:
            ours.grad = grad
            optimizer.step()
    assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -0.1}, ValueError, "lr: expected a finite number of at least 0, got -0.1"),
        ({"momentum": 1.0}, ValueError, "momentum: expected .* of at least 0 and less than 1, got 1.0"),
        ({"weight_decay": float("inf")}, ValueError, "weight_decay: expected a finite number of at least 0"),
        ({"nesterov": 1}, TypeError, "nesterov: expected True or False, got 1 of type int"),
        ({"nesterov": True}, ValueError, "nesterov: expected a momentum greater than 0 with it, got momentum 0"),
    ],
)
def test_options_out_of_range(options, error, message):
    with pytest.raises(error, match=message):
        SGD([nn.Parameter(torch.zeros(2))], **options)


@pytest.mark.parametrize("sparse_meanwhile", [True, False])
def test_steps_are_counted_while_decay_is_switched_off(sparse_meanwhile):
    """A row that makes a step without decay has not missed it."""
    param = nn.Parameter(torch.ones(3, 1, dtype=torch.float64))
    optimizer = SGD([param], lr=1.0)
    for number, weight_decay in enumerate((0.5, 0.0, 0.0, 0.5)):
        optimizer.param_groups[0]["weight_decay"] = weight_decay
        zero = torch.zeros(1, 1, dtype=torch.float64)
        dense = number in (1, 2) and not sparse_meanwhile
        param.grad = torch.zeros_like(param) if dense else sparse([1], zero, 3)
        optimizer.step()
    assert param.flatten()[1].item() == 0.25
