"""Huffman's tree: the frequent classes near the root."""

from __future__ import annotations

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vastmax.trees.tree import Tree
from vastmax.validation import check_counts


def huffman(counts: Tensor | ArrayLike) -> Tree:
    r"""Build the tree of the shortest mean path (Huffman, 1952).

    $$\min_{\text{tree}} \sum_c p_c\, \text{depth}_c \in [H(p), H(p) + 1), \qquad p_c = \frac{n_c}{\sum_j n_j},$$

    with the entropy $H$ in bits: no other tree scores fewer nodes a row, when targets are as frequent as counted.
    (Of several classes of which only one was counted, that one has a path of 1, which is $H + 1$.)
    Of the trees that do as well it is the one of the least depth. Built in O(V log V): the classes are sorted,
    the merged nodes come up in order. Equal counts give the same tree every time.

    Args:
        counts: (V,) counts, 0 or greater, integers or floats, not all 0: a tensor, or anything numpy makes an
            array of. A class never counted is a leaf like any other.

    Returns:
        The tree, on the CPU.

    Raises:
        TypeError, ValueError: `counts` that are not as above.

    Example:
        >>> huffman([8, 4, 2, 1, 1]).depth
        tensor([1, 2, 3, 4, 4])
    """
    sorted_counts, classes = check_counts("counts", counts).cpu().sort(stable=True)
    num_nodes = len(classes) - 1
    # Two queues, both rising, each closed by a sentinel: the leaves, and the nodes in the order they are made.
    leaves: list[float] = [*sorted_counts.tolist(), math.inf]
    items: list[int] = (~classes).tolist()
    nodes = [math.inf] * (num_nodes + 1)
    next_leaf = next_node = 0

    children: list[int] = []
    for made in range(num_nodes):
        total = 0.0
        for _ in range(2):
            # On a tie the leaf goes first, which keeps the tree shallow.
            if next_node == made or (next_leaf <= num_nodes and leaves[next_leaf] <= nodes[next_node]):
                total += leaves[next_leaf]
                children.append(items[next_leaf])
                next_leaf += 1
            else:
                total += nodes[next_node]
                children.append(num_nodes - 1 - next_node)  # the last node made is the root, node 0
                next_node += 1
        nodes[made] = total
    return Tree(torch.tensor(children, dtype=torch.int64).view(num_nodes, 2).flip(0))
