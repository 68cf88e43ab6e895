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


def halved(order: Tensor, weight: Tensor | None = None) -> Tree:
    """Build the tree whose nodes divide a range of `order` (V,) where its weight is nearest to half on either side.

    Args:
        order: (V,) class ids from left to right.
        weight: (V,) weight of each of them, greater than 0; equal if omitted. Of two equally good places the
            right one is taken, so that an odd range of equal weights is longer on the left.
    """
    weight = torch.ones(len(order), dtype=torch.float64) if weight is None else weight.double()
    before = torch.cat([weight.new_zeros(1), weight.cumsum(0)])
    start, stop = torch.tensor([0]), torch.tensor([len(order)])
    divided = stop - start > 1
    start, stop = start[divided], stop[divided]
    levels = [order.new_empty(0, 2)]
    num_nodes = len(start)
    while len(start) > 0:
        half = (before[start] + before[stop]) / 2
        cut = torch.searchsorted(before, half).clamp(start + 1, stop - 1)
        left = (cut - 1).clamp(start + 1)
        cut = torch.where(half - before[left] < before[cut] - half, left, cut)
        start = torch.stack([start, cut], -1).flatten()
        stop = torch.stack([cut, stop], -1).flatten()
        divided = stop - start > 1
        children = torch.where(divided, num_nodes + divided.cumsum(0) - 1, ~order[start])
        levels.append(children.view(-1, 2))
        num_nodes += int(divided.sum())
        start, stop = start[divided], stop[divided]
    return Tree(torch.cat(levels))
