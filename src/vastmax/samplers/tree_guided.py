"""Draws that follow the model down a tree of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vastmax.checking import at_hand
from vastmax.samplers.base import Sampler
from vastmax.samplers.conditional import ModelFollowingSampler, unrecorded
from vastmax.samplers.heap import BLOCK_ELEMENTS, HeapRows, inner_levels, left_size, log_turn, path
from vastmax.scoring import chosen_logits
from vastmax.versions import Tables

PRINCIPAL_DIRECTIONS = 16
"""Directions of the class rows by which classes are put in order."""


class TreeGuided(ModelFollowingSampler):
    r"""The model's own distribution, as far as subtree moments of its class rows tell it.

    The classes are the leaves of a binary tree. At an inner node a row turns left with probability

    $$\sigma(a_L(h) - a_R(h)), \qquad
      a_X(h) = \log \sum_{c \in X} e^{s_c(\bar h)} + (h - \bar h) \cdot \mu_X, \qquad
      \mu_X = \frac{\sum_{c \in X} e^{s_c(\bar h)} w_c}{\sum_{c \in X} e^{s_c(\bar h)}},$$

    where $s_c(h) = h \cdot w_c + b_c$: $a_X$ is the tangent, at the mean hidden row $\bar h$, of the log of what
    the classes of subtree X add to the partition. So q is the model's softmax at $\bar h$, and elsewhere the nearer
    to it the more alike the classes of a subtree are. The class order sees to that: unless one is given, a k-d
    tree over the principal directions of the class rows, laid anew with the tables.

    A draw costs O(d log V). The tables hold V x d numbers and cost O(V d + V log^2 V) to make. With one set of
    candidates for all rows, q is the mean of the rows' own, and the log-probability of an id costs O(N d log V).

    What the tangents underrate is drawn too rarely for its weight, which has no bound: give a share of the draws to
    the classes' frequencies, by a `Mixture` with `Unigram`.

    Args:
        num_classes: V.
        order: (V,) int64 class ids, leaf by leaf from left to right; laid by the class rows if omitted.
        refresh: batches from one making of the tables to the next.
        device: where to draw.

    Raises:
        TypeError, ValueError: arguments that are not as above; an `order` that is no permutation of the classes.

    Example:
        >>> from vastmax.heads import SampledSoftmax
        >>> head = SampledSoftmax(16, 1000, sampler=TreeGuided(1000), num_samples=20, shared=False)
        >>> loss = head(torch.randn(4, 16), torch.tensor([1, 2, 3, 999]))
    """

    table_names = ("_class_at", "_leaf", "_node_weight", "_node_bias")

    _order: Tensor | None
    _class_at: Tensor
    _leaf: Tensor
    _node_weight: Tensor
    _node_bias: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        order: Tensor | Sequence[int] | None = None,
        refresh: int = 500,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(num_classes, refresh=refresh, device=device)
        self._register_table(
            "_order", None if order is None else _check_order(order, self.num_classes).to(self.device)
        )

    def _build(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.to(hidden.dtype)
        order = self._order if self._order is not None else principal_order(weight)
        num_classes, levels = self.num_classes, inner_levels(self.num_classes)
        # The deepest leaves, to the left, have the highest numbers.
        bottom = 1 << len(levels)
        class_at = order.roll(bottom - num_classes)
        self._class_at = class_at
        self._leaf = torch.empty_like(class_at)
        self._leaf[class_at] = torch.arange(num_classes, 2 * num_classes, device=order.device)

        centre = hidden.mean(0) if len(hidden) > 0 else hidden.new_zeros(hidden.shape[1])
        logit = weight @ centre if bias is None else weight @ centre + bias.to(weight.dtype)
        self._node_weight = weight.new_zeros(num_classes, weight.shape[1])
        self._node_bias = logit.new_zeros(num_classes, dtype=torch.float64)
        leaves = class_at[bottom - num_classes :]
        mean, log_mass = weight[leaves], logit[leaves].double()
        for level in reversed(levels):
            left_mean, right_mean = mean.view(-1, 2, weight.shape[1]).unbind(1)
            left_mass, right_mass = log_mass.view(-1, 2).unbind(1)
            # Between two subtrees of no mass, any turn will do.
            log_odds = (left_mass - right_mass).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
            self._node_weight[level] = left_mean - right_mean
            self._node_bias[level] = log_odds
            share = log_odds.sigmoid().to(weight.dtype).unsqueeze(1)
            mean = right_mean + share * self._node_weight[level]
            log_mass = torch.logaddexp(left_mass, right_mass)
            if level.stop == num_classes:  # the leaves beside the last inner nodes
                leaves = class_at[: bottom - num_classes]
                mean = torch.cat([mean, weight[leaves]])
                log_mass = torch.cat([log_mass, logit[leaves].double()])
        self._node_bias = (self._node_bias - self._node_weight.double() @ centre.double()).to(weight.dtype)

    def _follow(self, hidden: Tensor, tables: Tables, *, shared: bool) -> Sampler:
        rows = _TreeRows(hidden, tables)
        return _MeanOfRows(rows) if shared else rows

    def extra_repr(self) -> str:
        """Return the constructor's arguments, the order as whether there is one."""
        order = "" if self._order is None else ", order=..."
        return f"num_classes={self.num_classes}{order}, refresh={self.refresh}"


class _TreeRows(HeapRows):
    """Each row of a batch by its own way down the tree."""

    def __init__(self, hidden: Tensor, tables: Tables) -> None:
        super().__init__(len(tables["_leaf"]), len(hidden), device=hidden.device)
        self.tables = tables
        self.class_at, self.leaf, self.node_weight, self.node_bias = (tables[n] for n in TreeGuided.table_names)
        self.hidden = hidden.to(self.node_weight.dtype)

    def _log_odds(self, rows: slice, node: Tensor) -> Tensor:
        return chosen_logits(self.hidden[rows], self.node_weight, node, linear_bias=self.node_bias)[0]

    def _top_log_odds(self, rows: slice, num_nodes: int) -> Tensor:
        return torch.addmm(self.node_bias[:num_nodes], self.hidden[rows], self.node_weight[:num_nodes].t())

    def _class_of(self, leaf: Tensor) -> Tensor:
        return self.class_at[leaf - self.num_classes]

    def _leaf_of(self, ids: Tensor) -> Tensor:
        return self.leaf[ids]


class _MeanOfRows(Sampler):
    r"""The mean of the rows' distributions: a row at random, and a draw of its own."""

    def __init__(self, rows: _TreeRows) -> None:
        super().__init__(rows.num_classes, device=rows.device)
        self.rows = rows

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        chosen = (self._uniform([math.prod(shape)], generator) * self.rows.num_rows).long()
        return _TreeRows(self.rows.hidden[chosen], self.rows.tables)._draw([len(chosen), 1], generator).view(*shape)

    def _log_prob(self, ids: Tensor) -> Tensor:
        leaf = self.rows._leaf_of(ids.reshape(-1))
        step = max(1, BLOCK_ELEMENTS // self.rows.num_rows)
        with unrecorded(self.device):
            parts = [self._leaf_log_prob(block) for block in leaf.split(step)]
        return torch.cat(parts).view(ids.shape)

    def _leaf_log_prob(self, leaf: Tensor) -> Tensor:
        """Log of the mean over the rows of the probability of leaves (K,), each node of their paths scored once."""
        every_row = slice(0, self.rows.num_rows)
        if not at_hand(leaf):  # nor is which nodes these are: each path's are scored
            log_reach = torch.zeros(self.rows.num_rows, len(leaf), dtype=torch.float64, device=leaf.device)
            for child, turns in path(leaf, self.num_classes):
                log_odds = self.rows._log_odds(every_row, child >> 1)
                log_reach += log_turn(log_odds, child % 2 == 0).masked_fill(~turns, 0.0)
            return log_reach.logsumexp(0) - math.log(self.rows.num_rows)
        node = torch.ones(1, dtype=torch.int64, device=leaf.device)
        log_reach = torch.zeros(self.rows.num_rows, 1, dtype=torch.float64, device=leaf.device)
        for level, (child, _) in enumerate(path(leaf, self.num_classes), start=1):
            child = child.unique()
            turns = child >= 1 << level  # not so at a leaf of the upper level, which is given again
            place = torch.searchsorted(node, torch.where(turns, child >> 1, child))
            log_odds = self.rows._log_odds(every_row, node.clamp(max=self.num_classes - 1))[:, place]
            log_reach = log_reach[:, place] + log_turn(log_odds, child % 2 == 0).masked_fill(~turns, 0.0)
            node = child
        mean = log_reach.logsumexp(0) - math.log(self.rows.num_rows)
        return mean[torch.searchsorted(node, leaf)]


def principal_order(weight: Tensor) -> Tensor:
    """Put classes with similar rows next to each other: the leaves of a k-d tree over the principal directions.

    Top down, each group of classes is halved at the median of the direction in which it varies most.

    Args:
        weight: (V, d) class rows.

    Returns:
        (V,) int64 class ids, leaf by leaf.
    """
    num_classes = len(weight)
    centred = weight - weight.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -PRINCIPAL_DIRECTIONS:]
    points = centred @ directions
    order = torch.arange(num_classes, device=weight.device)
    sizes = torch.tensor([num_classes])
    while int(sizes.max()) > 2:
        group = torch.arange(len(sizes)).repeat_interleave(sizes).to(weight.device)
        ordered = points[order]
        mean = points.new_zeros(len(sizes), points.shape[1]).index_add_(0, group, ordered)
        mean /= sizes.to(points).unsqueeze(1)
        spread = torch.zeros_like(mean).index_add_(0, group, (ordered - mean[group]).square())
        along = ordered.gather(1, spread.argmax(1)[group].unsqueeze(1)).squeeze(1)
        by_value = along.argsort(stable=True)
        order = order[by_value[group[by_value].argsort(stable=True)]]
        left = left_size(sizes)
        sizes = torch.stack([left, sizes - left], 1).flatten()
        sizes = sizes[sizes > 0]
    return order


def _check_order(order: Tensor | Sequence[int], num_classes: int) -> Tensor:
    order = torch.as_tensor(order)
    if order.dtype != torch.int64:
        raise TypeError(f"order: expected int64 class ids, got dtype {order.dtype}")
    every_class = torch.arange(num_classes, device=order.device)
    if order.shape != (num_classes,) or not torch.equal(order.sort().values, every_class):
        raise ValueError(f"order: expected each of {num_classes} class ids once, got shape {tuple(order.shape)}")
    return order.clone()
