import copy
import pickle

import pytest
import torch
from row_gradients import OPTIMIZERS, sparse
from torch import nn

from vastmax.optim import SGD

HALF = [torch.bfloat16, torch.float16]
every_optimizer = pytest.mark.parametrize("optimizer_class", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def steps(optimizer_class, grads, weight=None, **options):
    """The weight, of ones unless given, after a step with each gradient."""
    weight = torch.ones(len(grads[0]), 2) if weight is None else weight
    param = nn.Parameter(weight.to(grads[0].dtype, copy=True))
    optimizer = optimizer_class([param], **options)
    for grad in grads:
        param.grad = grad
        optimizer.step()
    return param.detach()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_a_step_below_half_an_ulp_moves_the_weight_in_the_mean(layout, dtype):
    """Each of n weights 1 goes to 1 - e with probability p: the share is that of n draws, within 6 deviations."""
    num_rows, share = 20_000, 0.125
    ulp = torch.finfo(dtype).eps / 2  # below 1
    grad = torch.full((num_rows, 2), share * ulp, dtype=dtype)
    grad = grad if layout == "dense" else sparse(range(num_rows), grad, num_rows)
    assert (steps(SGD, [grad], lr=1.0) == 1).all(), "rounded to the nearest, it stalls"
    after = steps(SGD, [grad], lr=1.0, stochastic_rounding=True, generator=torch.Generator().manual_seed(0))
    assert set(after.unique().tolist()) == {1.0, 1 - ulp}
    moved, draws = (after < 1).double().mean().item(), 2 * num_rows
    assert abs(moved - share) < 6 * (share * (1 - share) / draws) ** 0.5
    assert abs((after[:, 0] < 1).eq(after[:, 1] < 1).double().mean() - (share**2 + (1 - share) ** 2)) < 0.03


@every_optimizer
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_the_two_neighbours_of_the_exact_weight(optimizer_class, layout, dtype):
    g = torch.Generator().manual_seed(1)
    weight, grad = (torch.randn(50, 2, generator=g).to(dtype) for _ in range(2))
    of_rows = grad if layout == "dense" else sparse(range(50), grad, 50)
    exact = steps(optimizer_class, [of_rows.float()], weight, lr=0.3)
    rounded = torch.stack(
        [
            steps(optimizer_class, [of_rows], weight, lr=0.3, stochastic_rounding=True, generator=g).float()
            for _ in range(40)
        ]
    )
    gap = torch.finfo(dtype).eps * 2.0 ** (exact.frexp().exponent - 1)
    error = (rounded - exact) / gap
    assert error.abs().max() < 1 + 1e-3
    assert (rounded.amax(0) > rounded.amin(0)).double().mean() > 0.8
    assert abs(error.mean()) < 6 * 0.5 / error.numel() ** 0.5  # of a deviation of at most a half each


@every_optimizer
def test_draws_come_from_the_generator(optimizer_class):
    grads = [torch.full((40, 2), 0.01, dtype=torch.bfloat16)]

    def weight(generator):
        return steps(optimizer_class, grads, lr=0.1, stochastic_rounding=True, generator=generator)

    first, second, other = (weight(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    default = weight(None)
    torch.manual_seed(3)
    assert torch.equal(weight(None), default)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_not_rounded_and_takes_no_draws(optimizer_class, dtype):
    grads = [torch.full((4, 2), 0.1, dtype=dtype), sparse([1], torch.full((1, 2), 0.1, dtype=dtype), 4)]
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    stochastic = steps(optimizer_class, grads, stochastic_rounding=True, generator=generator)
    assert torch.equal(stochastic, steps(optimizer_class, grads))
    assert torch.equal(generator.get_state(), before)


@every_optimizer
def test_a_copy_and_a_pickle_draw_the_same(optimizer_class):
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.ones(40, 2, dtype=torch.bfloat16))
    optimizer = optimizer_class([param], lr=0.1, stochastic_rounding=True, generator=generator)
    copies = [optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    weights = []
    for each in copies:
        own = each.param_groups[0]["params"][0]
        own.grad = torch.full((40, 2), 0.01, dtype=torch.bfloat16)
        each.step()
        weights.append(own.detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert len(weights[0].unique()) == 2


@every_optimizer
def test_the_option_is_a_flag(optimizer_class):
    with pytest.raises(TypeError, match="stochastic_rounding: expected True or False, got 1 of type int"):
        optimizer_class([nn.Parameter(torch.zeros(2))], stochastic_rounding=1)
