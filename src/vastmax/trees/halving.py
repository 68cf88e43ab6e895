"""Trees by halves: all classes equally deep."""

from __future__ import annotations

import torch
from torch import Tensor

from vastmax.trees.tree import Tree
from vastmax.validation import check_positive_int


def balanced(num_classes: int) -> Tree:
    r"""Build the tree that divides the classes, in the order of their ids, into halves again and again.

    Every depth is $\lfloor \log_2 V \rfloor$ or $\lceil \log_2 V \rceil$.

    Args:
        num_classes: V.

    Returns:
        The tree, on the CPU.

    Raises:
        TypeError, ValueError: `num_classes` that is not an integer of at least 1.

    Example:
        >>> balanced(5).depth
        tensor([3, 3, 2, 2, 2])
    """
    return halved(torch.arange(check_positive_int("num_classes", num_classes)))


def halved(order: Tensor) -> Tree:
    """Build the tree whose nodes divide a range of `order` (V,) into halves; an odd range is longer on the left."""
    start, size = torch.tensor([0]), torch.tensor([len(order)])
    start, size = start[size > 1], size[size > 1]
    levels = [order.new_empty(0, 2)]
    num_nodes = len(size)
    while len(size) > 0:
        half = (size + 1) // 2
        start = torch.stack([start, start + half], -1).flatten()
        size = torch.stack([half, size - half], -1).flatten()
        divided = size > 1
        children = torch.where(divided, num_nodes + divided.cumsum(0) - 1, ~order[start])
        levels.append(children.view(-1, 2))
        num_nodes += int(divided.sum())
        start, size = start[divided], size[divided]
    return Tree(torch.cat(levels))
