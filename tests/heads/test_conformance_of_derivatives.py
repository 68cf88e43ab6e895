"""What every head promises to whoever asks for more than a gradient: the right value, or a refusal by name."""

import re

import pytest
import torch
from conformance import CASES, V, batch, call
from torch.func import functional_call, grad, stack_module_state, vmap

from derivatives import (
    REFUSED,
    TORCHS_WARNINGS,
    assert_products,
    assert_slopes,
    differences,
    forward_over_reverse,
    grad_twice,
    of_vector,
)

pytestmark = [pytest.mark.filterwarnings(f"ignore:{warning}") for warning in TORCHS_WARNINGS]


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def problem(case, reduction):
    """A head's loss as a function of one vector: hidden, every parameter and the rows' weights; and a direction.

    One of the rows is ignored where the loss is of rows.
    """
    head = case.make(reduction=reduction, **({"sparse": False} if case.sparse else {}))
    hidden, target, g = batch((3,))
    if reduction == "none":
        target[1] = -100
    w = torch.rand(3, generator=g, dtype=torch.float64) + 0.5
    upstream = torch.randn(3, generator=g, dtype=torch.float64) if reduction == "none" else torch.ones(())
    names = list(dict(head.named_parameters()))

    def loss(hidden, w, *parameters):
        state = dict(zip(names, parameters, strict=True))
        return (upstream * call(case, functionally(head, state), hidden, target, sample_weight=w)).sum()

    f, x = of_vector(loss, [hidden, w, *head.parameters()])
    return f, x, torch.randn(x.shape, generator=g, dtype=torch.float64)


def functionally(head, state):
    return lambda *inputs, **options: functional_call(head, state, inputs, options)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_second_derivatives(case, reduction):
    f, x, v = problem(case, reduction)
    # Where candidates that follow the model come from is no part of the gradient, but moves it.
    wanted = grad_twice(f, x, v) if case.follows else differences(f, x, v)
    assert wanted.abs().max() > 1e-3
    assert_products(f, x, v, wanted)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_slopes(case, reduction):
    assert_slopes(*problem(case, reduction))


@pytest.mark.parametrize("kind", ["several classes", "shares", "probabilities"])
def test_second_derivatives_of_other_targets(case, kind):
    """Several true classes of which one is ignored, shares of the row, and the classes' probabilities."""
    head = case.make(reduction="none", **({"sparse": False} if case.sparse else {}))
    hidden, first, g = batch((3,))
    target = torch.stack([first, (first + 2) % V, torch.full_like(first, -100)], -1)
    target[1, 1] = -100
    share = torch.rand(3, 3, generator=g, dtype=torch.float64)
    options = {"target_weight": share} if kind == "shares" else {}
    if kind == "probabilities":
        target = torch.rand(3, V, generator=g, dtype=torch.float64).softmax(-1)
    takes_it = (
        head.takes_probabilities if kind == "probabilities" else not case.sampled or head.sampler.takes_several
    )
    if not takes_it or case.follows:
        return
    names = list(dict(head.named_parameters()))

    def loss(hidden, *parameters):
        state = dict(zip(names, parameters, strict=True))
        return call(case, functionally(head, state), hidden, target, **options).square().sum()

    f, x = of_vector(loss, [hidden, *head.parameters()])
    v = torch.randn(x.shape, generator=g, dtype=torch.float64)
    wanted = differences(f, x, v)
    for way in (grad_twice, forward_over_reverse):
        torch.testing.assert_close(way(f, x, v), wanted, rtol=1e-6, atol=1e-7)


def test_second_derivatives_of_leaves(case):
    """As a penalty on the gradient is written, with the head's own options, sparse gradients or not."""
    head = case.make()
    hidden, target, g = batch()
    leaves = [hidden, *head.parameters()]
    directions = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in leaves]

    def slope():
        found = torch.autograd.grad(call(case, head, hidden, target), leaves, create_graph=True)
        assert not any(one.is_sparse for one in found)
        return sum((v * one).sum() for v, one in zip(directions, found, strict=True))

    def first(step):
        with torch.no_grad():
            for x, v in zip(leaves, directions, strict=True):
                x += step * v
        found = torch.autograd.grad(call(case, head, hidden, target), leaves)
        with torch.no_grad():
            for x, v in zip(leaves, directions, strict=True):
                x -= step * v
        return [one.to_dense() for one in found]

    slope().backward()
    if case.follows:
        return
    for x, above, below in zip(leaves, first(1e-5), first(-1e-5), strict=True):
        torch.testing.assert_close(x.grad.to_dense(), (above - below) / 2e-5, rtol=1e-6, atol=1e-7)


def test_gradients_row_by_row(case):
    """Vmap is refused, and what it tells of instead is true."""
    head = case.make(reduction="none", **({"sparse": False} if case.sparse else {}))
    hidden, target, _ = batch()
    state = dict(head.named_parameters())

    def loss(state, hidden, target):
        return call(case, functionally(head, state), hidden, target).sum()

    for argnums in (0, 1):
        with pytest.raises(NotImplementedError, match=f"^target: {REFUSED}"):
            vmap(grad(loss, argnums), in_dims=(None, 0, 0), randomness="different")(state, hidden, target)
    with pytest.raises(NotImplementedError, match=f"^hidden: {REFUSED}"):
        vmap(loss, in_dims=(None, 0, None), randomness="same")(state, hidden, target[0])
    if case.draws or case.follows:
        return  # other rows draw other candidates
    (of_rows,) = torch.autograd.grad(loss(state, hidden, target), hidden)
    torch.testing.assert_close(of_rows[2], grad(loss, 1)(state, hidden[2], target[2]))


def test_heads_side_by_side(case):
    """Vmap over several heads' parameters: their losses, or a refusal by name."""
    made = [case.make(**({"sparse": False} if case.sparse else {})) for _ in range(2)]
    with torch.no_grad():
        for parameter in made[1].parameters():
            parameter *= 1.5
    hidden, target, _ = batch()
    parameters, _ = stack_module_state(made)

    def loss(parameters):
        return call(case, functionally(made[0], parameters), hidden, target)

    try:
        ours = vmap(loss, randomness="same")(parameters)
    except NotImplementedError as refused:
        if re.search(REFUSED, str(refused)) is None:
            raise
    else:
        torch.testing.assert_close(ours, torch.stack([call(case, head, hidden, target) for head in made]))


def test_exact_probabilities_twice(case):
    """nll, log-probabilities and log-partition, as functions of hidden; classes of probability 0 left out."""
    head = case.make()
    hidden, target, g = batch((3,))
    u = torch.randn(3, V, generator=g, dtype=torch.float64)
    log_prob, nll = head.log_prob(hidden).detach(), head.nll(hidden, target).detach()

    def all_of_them(hidden):
        of_classes = u * head.log_prob(hidden).masked_fill(log_prob.isneginf(), 0.0)
        of_targets = head.nll(hidden, target).masked_fill(nll.isinf(), 0.0)
        return of_classes.sum() + of_targets.square().sum() + head.log_partition(hidden).sin().sum()

    f, x = of_vector(all_of_them, [hidden])
    v = torch.randn(x.shape, generator=g, dtype=torch.float64)
    assert_products(f, x, v, differences(f, x, v))
    assert_slopes(f, x, v)
