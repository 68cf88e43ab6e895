"""The best classes found so far, while groups of classes are visited one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vastmax.scoring.blocks import BLOCK_ELEMENTS
from vastmax.scoring.top import TopK
from vastmax.validation import check_positive_int


class RunningTopK:
    r"""The k most probable classes of N rows among those offered.

    A group of classes cannot hold a winner of a row where $\log p(\text{group})$, which bounds the log-probability
    of each of its classes, is not above the row's k-th best: `contested` says where it is.

    Args:
        num_rows: N.
        k: classes wanted.
        like: a tensor of the dtype and device of the log-probabilities.
    """

    def __init__(self, num_rows: int, k: int, like: Tensor) -> None:
        self.values = like.new_full((num_rows, k), -torch.inf)
        self.indices = torch.zeros_like(self.values, dtype=torch.int64)

    def contested(self, bound: Tensor) -> Tensor:
        """Return which rows a group with log-probabilities `bound` (N,) may still hold a winner of."""
        return (bound > self.values[:, -1]).nonzero().squeeze(-1)

    def offer(self, rows: Tensor, found: TopK) -> None:
        """Take in the best of a group, `found` (len(rows), up to k), falling, with the classes' own ids."""
        k = self.values.shape[1]
        values, place = torch.cat([self.values[rows], found.values], -1).topk(k)
        self.values[rows] = values
        self.indices[rows] = torch.cat([self.indices[rows], found.indices], -1).gather(-1, place)

    def best(self) -> TopK:
        """The winners."""
        return TopK(self.values, self.indices)


def topk_in_blocks(
    find: Callable[[Tensor, int], TopK], hidden: Tensor, k: int, *, num_classes: int, width: int
) -> TopK:
    """Apply `find` to blocks of the rows of hidden (..., d), of which each holds `width` numbers a row at a time.

    Raises:
        TypeError, ValueError: k is not an integer from 1 to num_classes.
    """
    if check_positive_int("k", k) > num_classes:
        raise ValueError(f"k: expected at most num_classes = {num_classes}, got {k}")
    rows = hidden.shape[:-1]
    blocks = hidden.reshape(-1, hidden.shape[-1]).split(max(1, BLOCK_ELEMENTS // max(width, k)))
    values, indices = zip(*(find(block, k) for block in blocks), strict=True)
    return TopK(torch.cat(values).view(*rows, k), torch.cat(indices).view(*rows, k))
