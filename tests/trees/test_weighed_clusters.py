"""Trees by similarity that are weighed by counts."""

import pytest
import torch

from vastmax import trees


def test_counts_keep_the_order_and_balance_the_mass():
    """The classes stand as without counts; the mean path is within two nodes of the entropy (Mehlhorn, 1977)."""
    g = torch.Generator().manual_seed(0)
    vectors = torch.randn(300, 5, generator=g)
    counts = (1000 / torch.arange(1, 301)[torch.randperm(300, generator=g)]).long() + 1
    tree = trees.clustered(vectors, counts)
    assert torch.equal(tree.leaf_order().order, trees.clustered(vectors).leaf_order().order)
    p = counts.double() / counts.sum()
    entropy = -(p * p.log2()).sum()
    mean_depth = (p * tree.depth).sum()
    assert entropy <= mean_depth < entropy + 2
    assert mean_depth < (p * trees.clustered(vectors).depth).sum()


def test_equal_counts_change_nothing():
    vectors = torch.randn(37, 3, generator=torch.Generator().manual_seed(1))
    tree = trees.clustered(vectors, torch.full((37,), 5))
    assert torch.equal(tree.children, trees.clustered(vectors).children)


def test_counts_by_hand():
    """In order of their vectors 1, 1, 2, 4: the 4 alone, then the 2, then the others."""
    tree = trees.clustered(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), [1, 1, 2, 4])
    assert sorted(tree.depth.tolist()) == [1, 2, 3, 3]
    assert tree.depth[3] == 1


def test_classes_that_were_never_counted_are_leaves_of_a_shallow_tree():
    counts = torch.zeros(1024)
    counts[5] = 1.0
    assert trees.clustered(torch.arange(1024.0).unsqueeze(1), counts).max_depth <= 2 + 10


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (torch.ones(3), r"counts: expected shape \(4,\), one per class, got \(3,\)"),
        (torch.zeros(4), "counts: expected at least one count greater than 0"),
        (-torch.ones(4), "counts: expected counts of at least 0"),
    ],
)
def test_counts_that_do_not_fit(counts, message):
    with pytest.raises(ValueError, match=message):
        trees.clustered(torch.randn(4, 2), counts)
