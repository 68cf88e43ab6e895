"""Alias tables hold the weights they were made of, draws are read off them, and Numba does the same to the bit."""

import pytest
import torch
from torch import Tensor

from vastmax.kernels import numba, reference

MANY = 10**6


def of_mean_one(weight: Tensor) -> Tensor:
    return weight * (len(weight) / weight.sum())


def shuffled(weight: Tensor) -> Tensor:
    return weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))]


ONES = torch.ones(1000, dtype=torch.float64)
ZIPF = torch.arange(1, MANY + 1, dtype=torch.float64).reciprocal()
POWERS = 10.0 ** -torch.arange(301, dtype=torch.float64)
NORMAL = torch.randn(10_007, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

COUNTS = {
    "one": ONES[:1],
    "two": torch.tensor([1.0, 3.0], dtype=torch.float64),
    "three": torch.tensor([2.0, 1.0, 4.0], dtype=torch.float64),
    "three, a zero": torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64),
    "one of many": torch.nn.functional.pad(ONES[:1], (700, 300)),
    "equal": ONES,
    "one twice the others": torch.cat([ONES, ONES[:1] * 2]),
    "one huge": torch.cat([ONES, ONES[:1] * 1e300, ONES]),
    "one huge among a million": torch.cat([torch.ones(MANY, dtype=torch.float64), ONES[:1] * 1e9]),
    "geometric, falling": POWERS,
    "geometric, rising": POWERS.flip(0),
    "many ends at once": torch.tensor([0.5, 1.5], dtype=torch.float64).repeat(500),
    "a slot's ends that round": torch.tensor([1.0, 5.0], dtype=torch.float64).repeat(500),
    "several heavy ones end in a slot": torch.tensor([0.0] + [1.25] * 4 + [1.0] * 3, dtype=torch.float64),
    "zeros among others": NORMAL.relu(),
    "log-normal": NORMAL.mul(3).exp(),
    "nearly equal": 1 + 1e-9 * NORMAL,
    "zipf": ZIPF,
    "zipf, shuffled": shuffled(ZIPF),
    "zipf, flattened": shuffled(ZIPF**0.5),
    "uniform": torch.rand(MANY, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
}
WEIGHTS = {name: of_mean_one(count) for name, count in COUNTS.items()} | {
    "equal, all above one by rounding": ONES * (1 + 2**-52),
    "equal, all below one by rounding": ONES * (1 - 2**-53),
}
every_weight = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())


@pytest.fixture(params=[reference, numba], ids=["reference", "numba"])
def kernels(request):
    return request.param


def held(table: Tensor) -> Tensor:
    """How much of each class the slots hold; rounded twice, the sums being whole numbers of 2^-53."""
    threshold, other = table[:, 0], table[:, 1].long()
    free = ((1 - threshold) * 2.0**53).long()
    high = torch.zeros_like(free).index_add_(0, other, free >> 30)
    low = torch.zeros_like(free).index_add_(0, other, free & (2**30 - 1))
    high, low = high + (low >> 30), low & (2**30 - 1)
    return threshold + (high.double() * 2.0**30 + low) * 2.0**-53


@every_weight
def test_the_slots_hold_the_weights(kernels, weight):
    num_classes, heaviest = len(weight), int(weight.argmax())
    table = kernels.alias_table(weight)
    assert table.shape == (num_classes, 2)
    assert table.dtype == torch.float64
    assert ((table[:, 0] >= 0) & (table[:, 0] <= 1)).all()

    error = (held(table) - weight).abs()
    light = weight <= 1
    light[heaviest] = False
    assert not error[light].any()
    rounding = 4 * 2.0 ** (num_classes.bit_length() - 62)
    assert rounding < 1e-12
    # What the sum of all weights is off from V is at no place but the heaviest class, unless that has less excess.
    off = 4 * num_classes * 2.0**-53
    assert error[heaviest] <= 4e-16 * weight[heaviest] + rounding + off
    error[heaviest] = 0
    within = rounding + (off if weight[heaviest] - 1 < off else 0)
    assert (error <= 4e-16 * weight + within).all()


@every_weight
def test_a_class_of_no_weight_is_in_no_slot(kernels, weight):
    table = kernels.alias_table(weight)
    threshold, other = table[:, 0], table[:, 1].long()
    assert not threshold[weight == 0].any()
    assert (weight[other] > 0).all()


@every_weight
def test_numba_makes_the_same_table(weight):
    assert torch.equal(numba.alias_table(weight), reference.alias_table(weight))


@pytest.mark.parametrize("num_classes", range(1, 40))
def test_numba_makes_the_same_table_of_few_classes(num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    for _ in range(20):
        count = torch.randint(5, (num_classes,), generator=generator).double()
        count[torch.randint(num_classes, (1,), generator=generator)] += 1
        weight = of_mean_one(count)
        table = reference.alias_table(weight)
        assert torch.equal(numba.alias_table(weight), table)
        torch.testing.assert_close(held(table), weight, rtol=1e-14, atol=1e-14)


def test_draws_at_positions(kernels):
    table = torch.tensor([[0.25, 2.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    position = torch.tensor([0.0, 0.125, 0.25, 1 - 2**-53, 1.0, 1.5, 2.0, 3 - 2**-51], dtype=torch.float64)
    ids = kernels.alias_draw(position, table)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [0, 0, 2, 2, 1, 1, 1, 1]
    assert torch.equal(kernels.alias_draw(position.view(2, 1, 4), table), ids.view(2, 1, 4))
    assert torch.equal(kernels.alias_draw(position[::3], table), ids[::3])
    assert kernels.alias_draw(position[2], table).item() == 2
    assert kernels.alias_draw(position[:0].view(0, 4), table).shape == (0, 4)


@pytest.mark.parametrize("eighths", [[4, 2, 24, 2], [0, 0, 32, 0], [8, 8, 8, 8], [10, 0, 13, 9], [1, 1, 15, 15]])
def test_positions_all_over_draw_each_class_as_often_as_it_weighs(kernels, eighths):
    table = kernels.alias_table(torch.tensor(eighths, dtype=torch.float64) / 8)
    ids = kernels.alias_draw(torch.arange(32, dtype=torch.float64) / 8, table)
    assert torch.bincount(ids, minlength=4).tolist() == eighths


@pytest.mark.parametrize("threads", [1, 3])
@every_weight
def test_numba_draws_the_same_classes(weight, threads):
    table = reference.alias_table(weight)
    uniform = torch.rand(50_001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    uniform[:3] = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    position = uniform * len(weight)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ids = numba.alias_draw(position, table)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ids, reference.alias_draw(position, table))
