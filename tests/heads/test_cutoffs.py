"""The cost model of the adaptive softmax, and cutoffs that minimise it."""

import itertools
import math

import pytest
import torch

from vastmax.heads.cutoffs import adaptive_cost, adaptive_cutoffs


def zipf(num_classes):
    return 1 / torch.arange(1, num_classes + 1, dtype=torch.float64)


def every_choice(num_classes, clusters):
    return itertools.chain.from_iterable(itertools.combinations(range(1, num_classes), n) for n in clusters)


def formula(cutoffs, shares, dim, rows, div, floor, update):
    """The cost of a step, product by product; `shares` of the tails."""
    edges = [*cutoffs, len(COUNTS)]
    head = dim * (edges[0] + len(cutoffs))
    total = max(floor, rows * head) + update * head
    for i, share in enumerate(shares):
        width = int(dim / div ** (i + 1))
        parameters = width * dim + width * (edges[i + 1] - edges[i])
        touched = 1 - (1 - share) ** rows
        total += max(touched * floor, rows * share * parameters) + touched * update * parameters
    return total


COUNTS = [6, 2, 1, 1]


@pytest.mark.parametrize(
    ("cutoffs", "shares"),
    [([], []), ([1], [0.4]), ([2], [0.2]), ([1, 3], [0.3, 0.1]), ([1, 2, 3], [0.2, 0.1, 0.1])],
)
@pytest.mark.parametrize("floor", [0.0, 100.0, 1e6])
def test_cost_is_the_formula(cutoffs, shares, floor):
    options = {"batch_size": 10, "div_value": 2.0, "product_floor": floor, "update_cost": 3.0}
    expected = formula(cutoffs, shares, 8, 10, 2.0, floor, 3.0)
    assert adaptive_cost(cutoffs, COUNTS, 8, **options) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_clusters", [None, 1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_no_choice_of_cutoffs_costs_less(seed, num_clusters):
    g = torch.Generator().manual_seed(seed)
    num_classes = 9
    counts = torch.rand(num_classes, generator=g, dtype=torch.float64).pow(3).sort(descending=True).values
    model = {
        "batch_size": int(torch.randint(1, 30, (), generator=g)),
        "product_floor": 200.0 * seed,
        "update_cost": float(seed % 3),
    }
    found = adaptive_cutoffs(counts, 64, num_clusters=num_clusters, div_value=2.0, min_width=1, **model)
    clusters = range(6) if num_clusters is None else [num_clusters]
    costs = [adaptive_cost(c, counts, 64, div_value=1.0, **model) for c in every_choice(num_classes, clusters)]
    assert len(found) in clusters
    assert adaptive_cost(found, counts, 64, div_value=1.0, **model) == pytest.approx(min(costs), rel=1e-12)
    assert max(costs) > 1.2 * min(costs)


@pytest.mark.parametrize(
    ("num_classes", "fixed"),
    [(1_000_000, [20_000, 200_000]), (10_000, [100, 1_000, 5_000]), (267_735, [20_000, 40_000, 200_000])],
)
def test_cheaper_than_customary_cutoffs(num_classes, fixed):
    counts = zipf(num_classes)
    found = adaptive_cutoffs(counts, 1024, num_clusters=len(fixed))
    assert adaptive_cost(found, counts, 1024, div_value=1.0) < adaptive_cost(fixed, counts, 1024, div_value=1.0)


def test_the_grid_is_fine_enough():
    counts = zipf(3000)
    everywhere, grid = (adaptive_cutoffs(counts, 64, num_positions=number) for number in (3000, 256))
    cost = [adaptive_cost(cutoffs, counts, 64, div_value=1.0) for cutoffs in (everywhere, grid)]
    assert everywhere != grid
    assert cost[0] <= cost[1] < 1.01 * cost[0]


def test_few_classes_stay_whole():
    """Where the head's product is too small to fill the machine, a tail is one more product."""
    assert adaptive_cutoffs([5, 3, 1], 64) == []
    assert adaptive_cutoffs([1], 64) == []


def test_rare_classes_go_to_the_tail():
    counts = torch.cat([torch.full((10,), 1e6), torch.ones(100_000)])
    assert adaptive_cutoffs(counts, 64, num_clusters=1, product_floor=0.0) == [10]


def test_widths_limit_the_number_of_tails():
    counts = zipf(100_000)
    assert [len(adaptive_cutoffs(counts, d)) for d in (8, 16, 64, 256, 1024)] == [0, 1, 2, 3, 4]
    assert len(adaptive_cutoffs(counts, 64, min_width=16)) == 1
    assert len(adaptive_cutoffs(counts, 64, div_value=2.0)) == 4


@pytest.mark.parametrize("num_clusters", [1, 3, 5])
def test_as_many_tails_as_asked(num_clusters):
    found = adaptive_cutoffs(zipf(5000), 4096, num_clusters=num_clusters, num_positions=2)
    assert len(found) == num_clusters
    assert found == sorted(set(found))
    assert found[0] >= 1
    assert found[-1] < 5000


def test_a_tail_that_takes_every_row():
    assert math.isfinite(adaptive_cost([1], [0, 2, 1], 8, div_value=2.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"counts": [1, -1]}, ValueError, "counts: expected counts of at least 0, got -1 at 1"),
        ({"in_features": 0}, ValueError, "in_features: expected an integer of at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1, got 0"),
        ({"div_value": 0.5}, ValueError, "div_value: expected a finite number of at least 1, got 0.5"),
        ({"update_cost": -1.0}, ValueError, "update_cost: expected a finite number of at least 0, got -1"),
        ({"num_positions": 0}, ValueError, "num_positions"),
        ({"min_width": 0}, ValueError, "min_width: expected an integer of at least 1, got 0"),
        ({"num_clusters": 2}, ValueError, "num_clusters: expected at most 1, which 9 classes, in_features=16, div"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        adaptive_cutoffs(**{"counts": zipf(9), "in_features": 16, **arguments})
