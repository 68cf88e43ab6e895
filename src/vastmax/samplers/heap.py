"""Draws by descending a binary tree over the classes, by the odds of left over right at every node.

The tree is a heap: node 1 is the root, node i has the children 2i and 2i + 1, the nodes from V to 2V - 1 are the
leaves. With V no power of two the leaves lie on two levels. Node 0 is none.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vastmax.samplers.base import Sampler
from vastmax.samplers.conditional import unrecorded

NODES_PER_DRAW = 16
"""Scoring this many nodes in one matrix product costs about what scoring one gathered node does."""

BLOCK_ELEMENTS = 1 << 22
"""Numbers for each of which an intermediate of a descent has an entry at a time."""


def inner_levels(num_leaves: int) -> list[slice]:
    """The inner nodes, level by level from the root down.

    Example:
        >>> inner_levels(5)  # nodes 1; 2 and 3; 4. Leaves are 5, 6 and 7 and, a level further down, 8 and 9
        [slice(1, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    depth = (num_leaves - 1).bit_length()
    return [slice(1 << level, min(2 << level, num_leaves)) for level in range(depth)]


def left_size(num_leaves: Tensor) -> Tensor:
    """How many of the leaves of a node, int64 of at least 1, are its left child's; all of them at a leaf.

    Example:
        >>> left_size(torch.arange(1, 10))
        tensor([1, 1, 2, 2, 3, 4, 4, 4, 5])
    """
    power = 1 << (torch.frexp(num_leaves.double()).exponent.long() - 1)
    return torch.minimum(power, num_leaves - power // 2)


def path(leaf: Tensor, num_leaves: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The way from the root down to each leaf: level by level the child turned to, and whether there is a turn.

    There is none at the last level for leaves of the upper of two leaf levels, which are then given again.
    """
    deepest = (2 * num_leaves - 1).bit_length() - 1
    leaf_level = deepest - (leaf < 1 << deepest).long()
    for level in range(1, len(inner_levels(num_leaves)) + 1):
        yield leaf >> (leaf_level - level).clamp(min=0), leaf_level >= level


def log_turn(log_odds: Tensor, left: Tensor) -> Tensor:
    """The log-probability of turning left, or right, at log odds of left over right; float64."""
    log_odds = log_odds.double()
    return logsigmoid(torch.where(left, log_odds, -log_odds))


class HeapRows(Sampler):
    """The sampler of one batch, each row of which draws by its own descent of one tree.

    A subclass states the log odds of left over right at any node, and which leaf is which class. Draws compare
    uniforms with the very numbers that their log-probability is made of. At the top of the tree, where the draws
    of a row crowd on few nodes, all of them are scored in one matrix product.

    Args:
        num_classes: V.
        num_rows: N.
        device: where to draw.
    """

    per_row = True

    def __init__(self, num_classes: int, num_rows: int, *, device: torch.device) -> None:
        super().__init__(num_classes, device=device)
        self.num_rows = num_rows

    @abstractmethod
    def _log_odds(self, rows: slice, node: Tensor) -> Tensor:
        """Log odds of left over right for `rows` at inner nodes (n, K): (n, K)."""

    @abstractmethod
    def _top_log_odds(self, rows: slice, num_nodes: int) -> Tensor:
        """Log odds of left over right for `rows` at the first nodes: (n, num_nodes)."""

    @abstractmethod
    def _class_of(self, leaf: Tensor) -> Tensor:
        """The classes of leaves."""

    @abstractmethod
    def _leaf_of(self, ids: Tensor) -> Tensor:
        """The leaves of classes."""

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        return self._draw_scored(shape, generator)[0]

    def _draw_scored(self, shape: Sequence[int], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        self._check_rows("size", shape)
        draws = math.prod(shape[1:])
        num_top = 1 << (min(self.num_classes, NODES_PER_DRAW * draws).bit_length() - 1) if draws else 1
        step = max(1, BLOCK_ELEMENTS // max(num_top, draws))
        blocks = [slice(start, min(start + step, self.num_rows)) for start in range(0, max(1, self.num_rows), step)]
        with unrecorded(self.device):
            parts = [self._descend(rows, draws, num_top, generator) for rows in blocks]
        leaf, log_prob = (torch.cat(found) for found in zip(*parts, strict=True))
        return self._class_of(leaf).view(*shape), log_prob.view(*shape)

    def _descend(
        self, rows: slice, draws: int, num_top: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return the leaves (n, draws) that `rows` arrive at, and their log-probabilities."""
        top = self._top_log_odds(rows, num_top)
        node = torch.ones(rows.stop - rows.start, draws, dtype=torch.int64, device=self.device)
        log_prob = torch.zeros(node.shape, dtype=torch.float64, device=self.device)
        for level in inner_levels(self.num_classes):
            turns = node < self.num_classes
            at = node.where(turns, level.start)
            log_odds = top.gather(1, at) if level.stop <= num_top else self._log_odds(rows, at)
            log_odds = log_odds.double()
            left = self._uniform(node.shape, generator) < log_odds.sigmoid()
            log_prob += log_turn(log_odds, left).masked_fill(~turns, 0.0)
            node = torch.where(turns, 2 * node + ~left, node)
        return node, log_prob

    def _log_prob(self, ids: Tensor) -> Tensor:
        self._check_rows("ids", ids.shape)
        leaf = self._leaf_of(ids.reshape(self.num_rows, math.prod(ids.shape[1:])))
        with unrecorded(self.device):
            return self._leaf_log_prob(leaf).view(ids.shape)

    def _leaf_log_prob(self, leaf: Tensor) -> Tensor:
        """Log-probability of leaves (N, K), float64."""
        log_prob = torch.zeros(leaf.shape, dtype=torch.float64, device=leaf.device)
        for child, turns in path(leaf, self.num_classes):
            log_odds = self._log_odds(slice(0, self.num_rows), child >> 1)
            log_prob += log_turn(log_odds, child % 2 == 0).masked_fill(~turns, 0.0)
        return log_prob

    def _check_rows(self, name: str, shape: Sequence[int]) -> None:
        if len(shape) == 0 or shape[0] != self.num_rows:
            raise ValueError(f"{name}: expected a first axis of {self.num_rows}, one per row, got {tuple(shape)}")


class OneRow(Sampler):
    """The only row of a `HeapRows`, as a sampler of sets of any shape.

    Args:
        row: with `num_rows` 1.
    """

    def __init__(self, row: HeapRows) -> None:
        super().__init__(row.num_classes, device=row.device)
        self.row = row

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        return self._draw_scored(shape, generator)[0]

    def _draw_scored(self, shape: Sequence[int], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        ids, log_prob = self.row._draw_scored([1, math.prod(shape)], generator)
        return ids.view(*shape), log_prob.view(*shape)

    def _log_prob(self, ids: Tensor) -> Tensor:
        return self.row._log_prob(ids.reshape(1, -1)).view(ids.shape)
