"""What each way of building a tree promises of it."""

import heapq
import math

import pytest
import torch
from random_trees import chain, random_paths

from vastmax.trees import Tree, balanced, clustered, from_paths, huffman


def kraft(tree):
    return (0.5 ** tree.depth.double()).sum().item()


def mean_path_by_heap(counts):
    """Every merge adds its total once to the summed path lengths."""
    heap, summed = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        total = heapq.heappop(heap) + heapq.heappop(heap)
        summed += total
        heapq.heappush(heap, total)
    return summed / sum(counts)


COUNTS = {
    "one": [4],
    "two": [0, 4],
    "equal": [5] * 12,
    "zeros": [0, 0, 9, 0, 1, 0, 0],
    "one of many": [0] * 9 + [1],
    "powers": [2**i for i in range(12)],
    "fibonacci": [1, 1, 2, 3, 5, 8, 13, 21],
    "fractions": [0.5, 0.25, 0.125, 0.125],
    "zipf": [10_000 // r for r in range(1, 500)],
    "random": torch.randint(100, (300,), generator=torch.Generator().manual_seed(0)).tolist(),
}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_huffman_is_the_shortest_code(counts):
    tree = huffman(counts)
    p = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    mean = (p * tree.depth).sum().item()
    assert mean == pytest.approx(mean_path_by_heap(counts), rel=1e-12)
    entropy = -torch.special.xlogy(p, p).sum().item() / math.log(2)
    assert entropy - 1e-12 <= mean <= entropy + 1
    assert mean < entropy + 1 or sum(count > 0 for count in counts) == 1  # a code word of no bit is not to be had
    assert kraft(tree) == 1


def test_huffman_of_powers_of_two_is_exactly_the_entropy():
    assert huffman([8, 4, 2, 1, 1]).depth.tolist() == [1, 2, 3, 4, 4]


def test_huffman_of_equal_counts_is_balanced():
    for num_classes in range(1, 20):
        depth = huffman([2] * num_classes).depth
        assert depth.max() - depth.min() <= 1
    assert huffman([0] * 64 + [1]).max_depth == 7  # neither are the classes without a count a chain


def test_huffman_takes_what_counts_are_made_of():
    counts = torch.tensor([5, 3, 1])
    for same in (counts, counts.half(), counts.numpy(), counts.tolist(), range(5, 0, -2)):
        assert huffman(same).depth.tolist() == [1, 2, 2]


BAD_COUNTS = [
    ([], r"counts: expected shape \(V,\) with V at least 1"),
    ([0, 0], "at least one count greater than 0, got 2 zeros"),
    ([1, -2], "counts of at least 0, got -2 at 1"),
    ([1, math.nan], "counts: expected finite values, got nan at"),
    ([1, math.inf], "got inf"),
    ([[1, 2]], r"got \(1, 2\)"),
]


@pytest.mark.parametrize(("counts", "message"), BAD_COUNTS, ids=[m for _, m in BAD_COUNTS])
def test_bad_counts(counts, message):
    with pytest.raises(ValueError, match=message):
        huffman(counts)


@pytest.mark.parametrize("num_classes", [*range(1, 18), 1000, 1024, 1025])
def test_balanced_trees_are_as_shallow_as_can_be(num_classes):
    tree = balanced(num_classes)
    assert tree.max_depth == math.ceil(math.log2(num_classes))
    assert tree.depth.min() == math.floor(math.log2(num_classes))
    assert torch.equal(tree.leaf_order().order, torch.arange(num_classes))
    assert kraft(tree) == 1


def test_balanced_errors():
    with pytest.raises(ValueError, match="num_classes: expected an integer of at least 1, got 0"):
        balanced(0)
    with pytest.raises(TypeError, match=r"num_classes: .* got 4\.0"):
        balanced(4.0)


@pytest.mark.parametrize("num_classes", [*range(1, 18), 64, 100])
@pytest.mark.parametrize("dim", [1, 5])
def test_clustered_trees_divide_at_the_median_of_the_principal_direction(num_classes, dim):
    g = torch.Generator().manual_seed(num_classes)
    scale = 2.0 ** -torch.arange(dim)  # a direction that stands out, so that power iteration gets there
    vectors = scale * torch.randn(num_classes, dim, generator=g, dtype=torch.float64)
    tree = clustered(vectors)
    assert tree.max_depth - int(tree.depth.min()) <= 1
    order, start, stop = tree.leaf_order()
    for node in range(tree.num_nodes):
        below = order[start[node] : stop[node]]
        left = order[start[node] : start[node] + (len(below) + 1) // 2]
        right = order[start[node] + len(left) : stop[node]]
        if len(right) < 4:
            continue
        rows = vectors[below] - vectors[below].mean(0)
        variances, directions = torch.linalg.eigh(rows.T @ rows)
        if dim > 1 and variances[-2] > 0.3 * variances[-1]:
            continue
        gap = vectors[right].mean(0) - vectors[left].mean(0)
        score = vectors @ directions[:, -1] * torch.sign(gap @ directions[:, -1])
        assert score[left].max() <= score[right].min() + 1e-3


def test_clustered_finds_the_clusters():
    g = torch.Generator().manual_seed(3)
    cluster = torch.arange(8).repeat(16)[torch.randperm(128, generator=g)]
    vectors = 10 * torch.eye(8)[cluster] + 0.1 * torch.randn(128, 8, generator=g)
    vectors = vectors @ torch.diag(torch.arange(8, 0, -1.0))
    found = cluster[clustered(vectors).leaf_order().order].view(8, 16)
    assert (found == found[:, :1]).float().mean() > 0.7


def test_clustered_is_deterministic_and_knows_no_scale():
    vectors = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tree = clustered(vectors)
    for same in (vectors, vectors * 2.0**-500, vectors * 2.0**500):
        assert torch.equal(clustered(same).children, tree.children)
    shifted = clustered(vectors.bfloat16())
    assert shifted.num_classes == 50
    assert torch.equal(clustered(torch.zeros(7, 2)).leaf_order().order, torch.arange(7))


def test_clustered_errors():
    for vectors, error, message in [
        (torch.zeros(3, 2, dtype=torch.int64), TypeError, "vectors: expected a floating-point tensor"),
        (torch.zeros(3), ValueError, "vectors: expected shape"),
        (torch.zeros(0, 2), ValueError, "at least one class"),
        (torch.tensor([[0.0], [torch.nan]]), ValueError, r"vectors: expected finite values, got nan at \(1, 0\)"),
    ]:
        with pytest.raises(error, match=message):
            clustered(vectors)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 10, 40])
def test_from_paths_has_these_paths(num_classes):
    for seed in range(5):
        paths = random_paths(num_classes, seed)
        tree = from_paths(paths)
        found = tree.paths(torch.arange(num_classes))
        for path, turns, padding in zip(paths, found.turns, found.padding, strict=True):
            assert "".join(str(int(turn)) for turn in turns[~padding]) == path
        as_numbers = [[int(turn) for turn in path] for path in paths]
        assert torch.equal(from_paths(as_numbers).children, tree.children)


def test_a_deep_tree_takes_no_more_memory_than_a_shallow_one():
    deep, shallow = chain(300), balanced(300)
    assert deep.max_depth == 299
    for name in ("children", "up", "depth"):
        assert getattr(deep, name).shape == getattr(shallow, name).shape


BAD_PATHS = [
    ("01", TypeError, "paths: expected a sequence with a path per class, got str"),
    (5, TypeError, "got int"),
    ([], ValueError, "at least one class, got none"),
    (["0", 1], TypeError, "got 1 for class 1"),
    (["0", "2"], ValueError, "expected turns 0 and 1, got '2' in the path of class 1"),
    (["0", [2]], ValueError, "got 2 in the path of class 1"),
    (["0", ["1"]], ValueError, "got '1' in the path of class 1"),
    (["0", "1", "0"], ValueError, "no path at the beginning of another, got '0' for class 0 and '0' for class 2"),
    (["11", "0", "1", "10"], ValueError, "got '1' for class 2 and '10' for class 3"),
    (["", "0"], ValueError, "got '' for class 0 and '0' for class 1"),
    (["0"], ValueError, "begins with '1', because that of class 0 turns the other way after ''; got none"),
    (["1"], ValueError, "begins with '0', because that of class 0"),
    (["00", "1"], ValueError, "begins with '01', because that of class 0 turns the other way after '0'"),
    (["0", "11"], ValueError, "begins with '10', because that of class 1 turns the other way after '1'"),
    (["000", "1", "01"], ValueError, "begins with '001', because that of class 0"),
    (["00", "011", "1"], ValueError, "begins with '010', because that of class 1"),
    (["0", "10", "110"], ValueError, "begins with '111', because that of class 2"),
    (["10", "11"], ValueError, "begins with '0', because that of class 0"),
]


@pytest.mark.parametrize(("paths", "error", "message"), BAD_PATHS, ids=[str(p) for p, _, _ in BAD_PATHS])
def test_bad_paths(paths, error, message):
    with pytest.raises(error, match=message):
        from_paths(paths)


def test_a_code_short_of_any_word_is_refused_and_the_gap_is_named():
    paths = random_paths(12, 4)
    for missing in range(12):
        with pytest.raises(ValueError, match="begins with") as raised:
            from_paths(paths[:missing] + paths[missing + 1 :])
        assert paths[missing].startswith(str(raised.value).split("'")[1])


@pytest.mark.parametrize(
    "build",
    [lambda: huffman([1]), lambda: balanced(1), lambda: clustered(torch.ones(1, 3)), lambda: from_paths([""])],
)
def test_a_single_class_has_the_empty_path(build):
    tree = build()
    assert isinstance(tree, Tree)
    assert (tree.num_classes, tree.num_nodes, tree.max_depth, tree.depth.tolist()) == (1, 0, 0, [0])
