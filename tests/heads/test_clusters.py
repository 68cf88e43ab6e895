"""Groups of classes: how they are made, their tables, and the draws within them."""

import copy

import pytest
import torch

from tables import tables_of
from vastmax.heads.clusters import Clusters, frequency_clusters, sqrt_clusters

GROUP = [1, 0, 2, 1, 1, 0, 2]
COUNTS = [5.0, 1.0, 2.0, 3.0, 2.0, 9.0, 6.0]


def test_frequency_clusters_have_equal_mass():
    counts = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 0.5
    group = frequency_clusters(counts, 10)
    mass = torch.zeros(10).index_add(0, group, counts) / counts.sum()
    assert (mass - 0.1).abs().max() < 1.5 / 500  # to the share of one class
    lowest = torch.full((10,), 9.0).scatter_reduce(0, group, counts, "amin")
    highest = torch.zeros(10).scatter_reduce(0, group, counts, "amax")
    assert (lowest[:-1] >= highest[1:]).all()  # the groups are runs of the classes by falling count


@pytest.mark.parametrize(
    ("counts", "num_clusters", "expected"),
    [
        ([1, 6, 2, 3], 2, [1, 0, 1, 1]),
        ([1, 1, 1, 1], 2, [0, 0, 1, 1]),
        ([100, 1, 1], 3, [0, 1, 1]),  # the first has more than a group's share: a group is left out
        ([3, 0, 0], 3, [0, 1, 1]),
        ([2], 1, [0]),
        ([1] * 9, None, [0, 0, 0, 1, 1, 1, 2, 2, 2]),
    ],
)
def test_frequency_clusters(counts, num_clusters, expected):
    assert frequency_clusters(counts, num_clusters).tolist() == expected


@pytest.mark.parametrize("num_classes", [1, 2, 3, 10, 100, 101])
def test_sqrt_clusters(num_classes):
    group = sqrt_clusters(num_classes)
    sizes = group.bincount()
    assert len(group) == num_classes
    assert (group.diff() >= 0).all()
    assert (sizes > 0).all()
    assert max(len(sizes), int(sizes.max())) <= num_classes**0.5 + 1


@pytest.mark.parametrize("group", [GROUP, [0, 0, 0], [2, 1, 0], [0, 0, 1, 1, 2], [0, 1, 1, 0]])
def test_members_and_labels(group):
    clusters = Clusters(group)
    everything = torch.arange(len(group))
    label = clusters.label(everything)
    for g in range(max(group) + 1):
        expected = [c for c in everything.tolist() if group[c] == g]
        assert clusters.member_ids(g).tolist() == expected
        assert everything[clusters.members(g)].tolist() == expected
        assert label[expected].tolist() == list(range(len(expected)))


def test_contiguous_groups_are_slices():
    assert Clusters([0, 0, 1]).members(0) == slice(0, 2)
    assert not isinstance(Clusters([0, 1, 0]).members(0), slice)


@pytest.mark.parametrize("counts", [None, COUNTS])
def test_draws_follow_the_declared_distribution(counts):
    clusters = Clusters(GROUP, counts)
    q = torch.ones(7) if counts is None else torch.tensor(counts)
    draws = 40_000
    for target in range(7):
        inside = torch.tensor(GROUP) == GROUP[target]
        expected = q.double() * inside / q[inside].sum()
        g = torch.Generator().manual_seed(target)
        candidates = clusters.sample(torch.tensor([target, 1]), draws, g)
        assert candidates.ids.shape == (2, draws)
        assert not candidates.unique
        found = candidates.ids[0].bincount(minlength=7)
        assert (found[~inside] == 0).all()
        chi_square = ((found - draws * expected)[inside].square() / (draws * expected[inside])).sum()
        assert chi_square < 18.5  # 0.9999 of two degrees of freedom
        log_count = (draws * expected[candidates.ids[0]]).log()
        torch.testing.assert_close(candidates.log_expected_count[0], log_count)
        torch.testing.assert_close(
            clusters.log_expected_count(torch.tensor([target]), 3), (3 * expected[[target]]).log()
        )


def test_draws_stay_inside_many_groups():
    """Sums of a hundred thousand rounded masses still part the groups where they should."""
    counts = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) + 1e-6
    clusters = Clusters(torch.arange(100_000) // 3, counts)
    target = torch.arange(0, 100_000, 7)
    ids = clusters.sample(target, 5, torch.Generator().manual_seed(1)).ids
    assert torch.equal(clusters.group[ids], clusters.group[target].unsqueeze(-1).expand(-1, 5))


def test_tables_survive_casts_and_moves():
    clusters = Clusters(GROUP, COUNTS)
    assert clusters.state_dict() == {}
    for other in (copy.deepcopy(clusters).half(), copy.deepcopy(clusters).to_empty(device="cpu")):
        assert tables_of(other).keys() == tables_of(clusters).keys()
        for name, table in tables_of(clusters).items():
            assert torch.equal(getattr(other, name), table)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([[0, 2]], ValueError, r"clusters: expected class ids in \[0, 2\), got 2 at \(1,\)"),
        ([[0, 2, 2]], ValueError, "clusters: expected a class in every group from 0 to 2, got none in 1"),
        ([[0, -1]], ValueError, "got -1"),
        ([[[0, 1]]], ValueError, r"clusters: expected shape \(V,\) with V at least 1, got \(1, 2\)"),
        ([torch.empty(0, dtype=torch.int64)], ValueError, r"clusters: expected shape \(V,\)"),
        ([[0.0, 1.0]], TypeError, "clusters: expected integers, got list of float64"),
        ([torch.zeros(3)], TypeError, "clusters: expected int64 class ids, got dtype torch.float32"),
        ([[0, 1], [1.0, 0.0]], ValueError, "counts: expected counts greater than 0, got 0 at 1"),
        ([[0, 1], [1.0]], ValueError, r"counts: expected shape \(2,\), one per class, got \(1,\)"),
    ],
)
def test_bad_clusters(arguments, error, message):
    with pytest.raises(error, match=message):
        Clusters(*arguments)


def test_bad_helpers():
    with pytest.raises(ValueError, match="num_clusters: expected at most the 2 classes, got 3"):
        frequency_clusters([1, 1], 3)
    with pytest.raises(ValueError, match="counts: expected at least one count greater than 0"):
        frequency_clusters([0, 0])
    with pytest.raises(ValueError, match="num_classes"):
        sqrt_clusters(0)
