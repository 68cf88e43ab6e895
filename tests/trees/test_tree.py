"""What is true of every tree: its paths, its distribution, its order; and what is refused as one."""

import copy
import pickle

import pytest
import torch
from random_trees import TREES, random_paths

from vastmax.trees import Tree, balanced, from_paths


@pytest.fixture(params=TREES.values(), ids=TREES)
def tree(request):
    return request.param


def words(tree):
    """The paths as strings, by walking down the children."""
    found, open_nodes = {}, [(0, "")] if tree.num_nodes else []
    if not tree.num_nodes:
        found[0] = ""
    for node, word in open_nodes:
        for turn, child in enumerate(tree.children[node].tolist()):
            if child < 0:
                found[~child] = f"{word}{turn}"
            else:
                open_nodes.append((child, f"{word}{turn}"))
    return [found[c] for c in range(tree.num_classes)]


def test_paths_are_the_ways_down_the_children(tree):
    ids = torch.arange(tree.num_classes)
    nodes, turns, padding = tree.paths(ids)
    assert nodes.shape == turns.shape == padding.shape == (tree.num_classes, tree.max_depth)
    expected = words(tree)
    for c in range(tree.num_classes):
        length = int((~padding[c]).sum())
        assert padding[c].tolist() == [False] * length + [True] * (tree.max_depth - length)
        assert "".join(str(int(turn)) for turn in turns[c, :length]) == expected[c]
        assert not nodes[c, length:].any()
        assert not turns[c, length:].any()
        at = 0
        for node, turn in zip(nodes[c, :length].tolist(), turns[c, :length].int().tolist(), strict=True):
            assert node == at
            at = tree.children[node, turn].item()
        assert at == (~c if length else 0)
    assert tree.depth.tolist() == [len(word) for word in expected]
    assert tree.max_depth == max(len(word) for word in expected)


def test_paths_of_any_shape_are_padded_to_their_own_longest(tree):
    ids = torch.arange(tree.num_classes).flip(0)[: 2 * (tree.num_classes // 2)].view(2, -1)
    found, every = tree.paths(ids), tree.paths(torch.arange(tree.num_classes))
    length = int(tree.depth[ids].max()) if ids.numel() else 0
    for mine, all_of_them in zip(found, every, strict=True):
        assert torch.equal(mine, all_of_them[..., :length][ids])
    assert tree.paths(torch.empty(3, 0, dtype=torch.int64)).nodes.shape == (3, 0, 0)


def test_nodes_are_numbered_level_by_level_from_left_to_right(tree):
    nodes = [(len(word), word) for word in sorted({word[:i] for word in words(tree) for i in range(len(word))})]
    places = {word: number for number, (_, word) in enumerate(sorted(nodes))}
    for c, word in enumerate(words(tree)):
        assert tree.paths(torch.tensor([c])).nodes[0].tolist() == [places[word[:i]] for i in range(len(word))]
    assert [stop - start for start, stop in tree.levels] == [
        sum(depth == level for depth, _ in nodes) for level in range(tree.max_depth)
    ]


def test_numbering_of_the_nodes_does_not_matter():
    tree = from_paths(random_paths(12, 1))
    shuffle = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(10)])
    children = torch.empty_like(tree.children)
    children[shuffle] = torch.where(
        tree.children < 0, tree.children, torch.cat([shuffle, shuffle.new_zeros(12)])[tree.children]
    )
    assert not torch.equal(children, tree.children)
    assert torch.equal(Tree(children).children, tree.children)


def test_probabilities_are_products_of_the_turns_and_sum_to_one(tree):
    g = torch.Generator().manual_seed(0)
    z = (3 * torch.randn(2, 3, tree.num_nodes, generator=g, dtype=torch.float64)).requires_grad_()
    log_prob = tree.log_prob(z)
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    left = z.sigmoid()
    for c, word in enumerate(words(tree)):
        product, node = torch.ones(2, 3, dtype=torch.float64), 0
        for turn in word:
            product = product * (left[..., node] if turn == "0" else 1 - left[..., node])
            node = tree.children[node, int(turn)].item()
        torch.testing.assert_close(log_prob[..., c].exp(), product)
    assert log_prob.requires_grad
    assert torch.autograd.gradcheck(tree.log_prob, z[:1, :1])


def test_node_logits_of_probabilities_give_them_back(tree):
    p = torch.rand(tree.num_classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 20
    p /= p.sum()
    z = tree.node_logits(p.log())
    torch.testing.assert_close(tree.log_prob(z), p.log())
    nodes, turns, padding = tree.paths(torch.arange(tree.num_classes))
    for node in range(tree.num_nodes):
        here = (nodes == node) & ~padding
        left, right = p[(here & ~turns).any(-1)].sum(), p[(here & turns).any(-1)].sum()
        torch.testing.assert_close(z[node], (left / right).log())
    torch.testing.assert_close(tree.node_logits(p.log() - 5), z)
    torch.testing.assert_close(
        tree.node_logits(tree.log_prob(200 * z)), 200 * z
    )  # masses far below what float64 holds


def test_probabilities_of_zero_are_given_back(tree):
    p = torch.rand(tree.num_classes, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p[1::2] = 0
    p /= p.sum()
    torch.testing.assert_close(tree.log_prob(tree.node_logits(p.log())).exp(), p)


def test_subtrees_are_ranges_of_the_leaf_order(tree):
    order, start, stop = tree.leaf_order()
    assert sorted(order.tolist()) == list(range(tree.num_classes))
    assert order.tolist() == sorted(range(tree.num_classes), key=words(tree).__getitem__)
    nodes, _, padding = tree.paths(torch.arange(tree.num_classes))
    for node in range(tree.num_nodes):
        below = ((nodes == node) & ~padding).any(-1).nonzero().flatten()
        assert sorted(order[start[node] : stop[node]].tolist()) == below.tolist()


def test_copies(tree):
    for other in (copy.deepcopy(tree), pickle.loads(pickle.dumps(tree)), Tree(tree.children), tree.to("cpu")):
        assert torch.equal(other.children, tree.children)
        assert torch.equal(other.up, tree.up)
        assert torch.equal(other.depth, tree.depth)
        assert other.levels == tree.levels
    assert tree.to("cpu") is tree
    assert tree.to("meta").children.is_meta
    assert not tree.children.is_meta


def test_a_tree_cannot_be_changed(tree):
    with pytest.raises(AttributeError, match="children"):
        tree.children = torch.zeros(1, 2, dtype=torch.int64)
    given = torch.tensor([[~0, ~1]])
    made = Tree(given)
    given[0, 0] = 5
    assert made.children.tolist() == [[-1, -2]]


def test_repr():
    assert repr(balanced(5)) == "Tree(num_classes=5, mean_depth=2.40, max_depth=3)"


BAD_CHILDREN = [
    ([[-1, -2]], TypeError, "children: expected an int64 tensor .*, got list"),
    (torch.zeros(1, 2), TypeError, "got torch.float32"),
    (torch.tensor([-1, -2]), ValueError, r"expected shape \(num_classes - 1, 2\), got \(2,\)"),
    (torch.tensor([[-1, -2, -3]]), ValueError, r"got \(1, 3\)"),
    (torch.tensor([[-1, 1], [-2, -4]]), ValueError, r"classes ~c with c in \[0, 3\), got -4 at \(1, 1\)"),
    (torch.tensor([[-1, 2], [-2, -3]]), ValueError, r"expected nodes in \[0, 2\).*, got 2 at \(0, 1\)"),
    (torch.tensor([[-1, 1], [-2, -2]]), ValueError, "class 2 to be the child of 1 node, got 0"),
    (torch.tensor([[-1, -3], [-2, 0]]), ValueError, "node 0 to be the child of 0 node"),
    (torch.tensor([[-1, -3], [-2, 1]]), ValueError, "expected one tree, got 1 nodes out of reach of node 0"),
]


@pytest.mark.parametrize(("children", "error", "message"), BAD_CHILDREN, ids=[m for _, _, m in BAD_CHILDREN])
def test_what_is_not_a_tree(children, error, message):
    with pytest.raises(error, match=message):
        Tree(children)


def test_bad_calls():
    tree = balanced(3)
    with pytest.raises(ValueError, match=r"ids: expected class ids in \[0, 3\), got 3"):
        tree.paths(torch.tensor([3]))
    with pytest.raises(ValueError, match=r"node_logits: expected shape \(\.\.\., 2\), one per node, got \(4, 3\)"):
        tree.log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"log_prob: expected shape \(3,\)"):
        tree.node_logits(torch.zeros(2))
