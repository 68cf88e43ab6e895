"""The best classes found so far, while groups of classes are visited one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vastmax.scoring.blocks import BLOCK_ELEMENTS
from vastmax.scoring.class_gradients import arithmetic
from vastmax.scoring.every_class import check_linear
from vastmax.scoring.logit_parts import logit_blocks
from vastmax.scoring.products import multiplications, products
from vastmax.scoring.top import TopK, best_of
from vastmax.validation import check_k


class RunningTopK:
    r"""The k most probable classes of N rows, equals by rising id, where groups of classes are offered one by one.

    A group of classes cannot hold a winner of a row where $\log p(\text{group})$, which bounds the log-probability
    of each of its classes, is below the row's k-th best: `contested` says where it is not. Classes that are not
    offered to a row that lacks winners are those of probability 0.

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
        return ((bound >= self.values[:, -1]) & ~bound.isneginf()).nonzero().squeeze(-1)

    def offer(self, rows: Tensor, found: TopK) -> None:
        """Take in the best of a group, `found` (len(rows), up to k), falling, with the classes' own ids."""
        values = torch.cat([self.values[rows], found.values], -1)
        indices = torch.cat([self.indices[rows], found.indices], -1)
        self.values[rows], self.indices[rows] = best_of(values, indices, self.values.shape[1])

    def best(self) -> TopK:
        """The winners."""
        return with_the_impossible(TopK(self.values, self.indices))


def with_the_impossible(found: TopK) -> TopK:
    """Fill the places (N, k) of value -inf with the first ids that are not among the row's others.

    Those are the first k of a row's classes of which some are among the others, which therefore are enough.
    """
    lacking = found.values[:, -1].isneginf().nonzero().squeeze(-1)
    if len(lacking) == 0:
        return found
    values, indices = found.values[lacking], found.indices[lacking]
    k = values.shape[1]
    # Places of value -inf name nothing yet: they are marked, as are ids past the first k, where nobody looks.
    named = indices.clamp(max=k).masked_fill(values.isneginf(), k)
    is_named = torch.zeros(len(values), k + 1, dtype=torch.bool, device=values.device).scatter_(-1, named, True)
    free = is_named[:, :k].to(torch.int8).sort(dim=-1, stable=True).indices
    rank = torch.arange(k, device=values.device) - (~values.isneginf()).sum(-1, keepdim=True)
    filled = torch.where(values.isneginf(), free.gather(-1, rank.clamp(min=0)), indices)
    return TopK(found.values, found.indices.index_copy(0, lacking, filled))


def topk_in_blocks(
    find: Callable[[Tensor, int], TopK], hidden: Tensor, k: int, *, num_classes: int, width: int
) -> TopK:
    """Apply `find` to blocks of the rows of hidden (..., d), of which each holds `width` numbers a row at a time.

    Raises:
        TypeError, ValueError: k is not an integer from 1 to num_classes.
    """
    k = check_k(k, num_classes)
    flat = hidden.reshape(-1, hidden.shape[-1])
    found, done = None, 0
    for block in flat.split(max(1, BLOCK_ELEMENTS // max(width, k))):
        best = find(block, k)
        # Into tensors that were there before: see `LogitBlock.parts`.
        found = found or TopK(*(x.new_empty(len(flat), k) for x in best))
        for kept, new in zip(found, best, strict=True):
            kept[done : done + len(block)] = new
        done += len(block)
    assert found is not None
    return TopK(*(x.view(*hidden.shape[:-1], k) for x in found))


def topk_of_logits(
    best: Callable[[slice, Tensor], TopK],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    *,
    together: int = 1,
) -> TopK:
    """Return what `best` finds in the logits (n, V) of all rows of hidden (N, d), a few of them at a time.

    Rows that are `together`, see `logit_blocks`, have one answer (k,).
    """
    check_linear(hidden, weight, bias)
    values = hidden.new_empty(len(hidden) // together, k, dtype=arithmetic(hidden, weight))
    found = TopK(values, torch.empty_like(values, dtype=torch.int64))
    with products(None, hidden.device, count=multiplications(hidden, weight)):
        for block in logit_blocks(hidden, weight, bias, together=together):
            for rows, logits in block.parts():
                answers = slice(rows.start // together, rows.stop // together)
                found.values[answers], found.indices[answers] = best(answers, logits)
    return found
