"""A binary tree over the classes: paths, levels, and the distribution that node logits make of it."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vastmax import checking
from vastmax.validation import check_ids, check_per_class


class Paths(NamedTuple):
    """The way from the root to some classes, padded at its end to the longest of them.

    Attributes:
        nodes: (..., L) int64, the nodes on the way, the root first; 0 where padded.
        turns: (..., L) bool, True where the way turns right; False where padded.
        padding: (..., L) bool, True past the end of a way.
    """

    nodes: Tensor
    turns: Tensor
    padding: Tensor


class LeafOrder(NamedTuple):
    """The classes from left to right: those below node n are `order[start[n]:stop[n]]`.

    Attributes:
        order: (V,) int64 class ids.
        start: (V - 1,) int64.
        stop: (V - 1,) int64.
    """

    order: Tensor
    start: Tensor
    stop: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Tree:
    r"""A binary tree with V classes as leaves and V - 1 nodes, each with a left and a right child.

    At a node the mass of its classes is divided: $\sigma(z_n)$ goes left, $\sigma(-z_n)$ right. A child is a node
    $n \ge 0$, or a class $c$ written as $-1 - c$ (`~c`). Nodes are numbered level by level, from left to right:
    node 0 is the root, a parent comes before its children, and a level is a range. Links to the parents take
    O(V) memory however deep the tree, where the paths written out would take V times their mean length.

    Args:
        children: (V - 1, 2) int64, on any device: left and right child of each node; (0, 2) for the tree of a
            single class. The root must be node 0; nodes numbered otherwise are renumbered.

    Attributes:
        children: (V - 1, 2) int64.
        up: (2V - 1,) int64, indexed as children are written: `up[child]` is the place of the child in
            `children.flatten()`, twice its parent plus its turn. 0 for the root.
        depth: (V,) int64, the nodes on the way to each class.
        levels: the first node and the end of each level, from the root down.

    Raises:
        TypeError: `children` is not an int64 tensor.
        ValueError: `children` is not such a tree.

    Example:
        >>> tree = Tree(torch.tensor([[1, ~2], [~0, ~1]]))
        >>> tree
        Tree(num_classes=3, mean_depth=1.67, max_depth=2)
        >>> tree.paths(torch.tensor([1, 2])).nodes
        tensor([[0, 1],
                [0, 0]])
    """

    children: Tensor
    up: Tensor = field(init=False)
    depth: Tensor = field(init=False)
    levels: tuple[tuple[int, int], ...] = field(init=False)

    def __post_init__(self) -> None:
        given = _checked_children(self.children)
        sweeps = _level_order(given)
        order = torch.cat(sweeps)
        number = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        children = given[order]
        children[children >= 0] = number[children[children >= 0]]

        ends = [0]
        for sweep in sweeps:
            ends.append(ends[-1] + len(sweep))
        levels = tuple(itertools.pairwise(ends)) if len(order) > 0 else ()

        up = children.new_zeros(2 * len(children) + 1)
        up[children.flatten()] = torch.arange(2 * len(children), device=up.device)
        depth = up.new_zeros(len(children) + 1)
        for level, (start, stop) in enumerate(levels):
            below = children[start:stop]
            depth[~below[below < 0]] = level + 1
        for name, value in (("children", children), ("up", up), ("depth", depth), ("levels", levels)):
            object.__setattr__(self, name, value)

    @property
    def num_classes(self) -> int:
        """V."""
        return len(self.children) + 1

    @property
    def num_nodes(self) -> int:
        """V - 1: the leaves are not counted."""
        return len(self.children)

    @property
    def max_depth(self) -> int:
        """The length of the longest path."""
        return len(self.levels)

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.children.device

    def to(self, device: torch.device | str) -> Tree:
        """Return this tree on a device: itself if it is there."""
        moved = {name: getattr(self, name).to(device) for name in ("children", "up", "depth")}
        if moved["children"] is self.children:
            return self
        tree = copy.copy(self)
        for name, table in moved.items():
            object.__setattr__(tree, name, table)
        return tree

    def paths(self, ids: Tensor) -> Paths:
        """Return the paths to classes `ids` (...): see `Paths`; O(L) gathers of as many numbers as there are ids.

        Raises:
            TypeError, ValueError: `ids` that are not int64 or not in [0, num_classes).
        """
        check_ids("ids", ids, self.num_classes)
        depth = self.depth[ids].unsqueeze(-1)
        longest = 0
        if ids.numel() > 0:  # to the leaves of this batch, if their depth can be looked at, or to those of any
            longest = int(depth.max()) if checking.at_hand(depth) else self.max_depth
        upward = ids.new_empty((*ids.shape, longest))
        place = self.up[~ids]
        for step in range(longest):
            upward[..., step] = place
            place = self.up[place >> 1]
        from_leaf = depth - 1 - torch.arange(longest, device=ids.device)
        padding = from_leaf < 0
        place = upward.gather(-1, from_leaf.clamp(min=0)).masked_fill(padding, 0)
        return Paths(place >> 1, (place & 1).bool(), padding)

    def log_prob(self, node_logits: Tensor) -> Tensor:
        r"""Return the log-probability of every class, given the logits $z$ of the nodes.

        $$\log p_c = \sum_{n \in \text{path}(c)} \log \sigma(\pm z_n), \qquad + \text{ to the left}, - \text{ to
        the right}$$

        Args:
            node_logits: (..., V - 1).

        Returns:
            (..., V), in nats; they sum to one. Differentiable.

        Raises:
            ValueError: `node_logits` of another shape.

        Example:
            >>> Tree(torch.tensor([[1, ~2], [~0, ~1]])).log_prob(torch.zeros(2)).exp()
            tensor([0.2500, 0.2500, 0.5000])
        """
        if node_logits.ndim == 0 or node_logits.shape[-1] != self.num_nodes:
            raise ValueError(
                f"node_logits: expected shape (..., {self.num_nodes}), one per node, got {tuple(node_logits.shape)}"
            )
        mass = node_logits[..., :0].sum(-1, keepdim=True)  # of the root: log 1, the sum over an empty path
        if self.num_nodes == 0:
            return mass
        below: list[Tensor] = []
        above = 0
        for start, stop in self.levels:
            if below:
                mass = below[-1].index_select(-1, self.up[start:stop] - 2 * above)
            logits = node_logits[..., start:stop]
            turns = torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)], -1)
            below.append((mass.unsqueeze(-1) + turns).flatten(-2))
            above = start
        return torch.cat(below, -1).index_select(-1, self.up[self.num_nodes :].flip(0))

    def node_logits(self, log_prob: Tensor) -> Tensor:
        r"""Return the node logits that make `log_prob` of this tree: the inverse of `Tree.log_prob`.

        $$z_n = \log \sum_{c \text{ left of } n} p_c - \log \sum_{c \text{ right of } n} p_c$$

        Args:
            log_prob: (V,) in nats, normalised or not; -inf for a class without mass. A node without any gets 0.

        Returns:
            (V - 1,).

        Raises:
            TypeError, ValueError: `log_prob` that is not one floating-point number per class.
        """
        check_per_class("log_prob", log_prob, self.num_classes)
        mass = torch.cat([log_prob.new_empty(self.num_nodes), log_prob.flip(0)])  # indexed as `up` is
        logits = log_prob.new_empty(self.num_nodes)
        for start, stop in reversed(self.levels):
            left, right = mass[self.children[start:stop]].unbind(-1)
            mass[start:stop] = torch.logaddexp(left, right)
            logits[start:stop] = torch.where(left == right, 0.0, left - right)
        return logits

    def leaf_order(self) -> LeafOrder:
        """Return an order of the classes in which those below any node stand together: see `LeafOrder`.

        The sum of numbers over each subtree is then a difference of two entries of their cumulative sum.

        Example:
            >>> Tree(torch.tensor([[~2, 1], [~0, ~1]])).leaf_order()
            LeafOrder(order=tensor([2, 0, 1]), start=tensor([0, 1]), stop=tensor([3, 3]))
        """
        size, start = torch.ones_like(self.up), torch.zeros_like(self.up)
        for first, end in reversed(self.levels):
            size[first:end] = size[self.children[first:end]].sum(-1)
        for first, end in self.levels:
            left, right = self.children[first:end].unbind(-1)
            above = start[first:end].clone()
            start[left] = above
            start[right] = above + size[left]
        order = torch.empty_like(self.depth)
        order[start[self.num_nodes :].flip(0)] = torch.arange(self.num_classes, device=self.device)
        start, size = start[: self.num_nodes], size[: self.num_nodes]
        return LeafOrder(order, start, start + size)

    def __repr__(self) -> str:
        mean = self.depth.double().mean().item()
        return f"Tree(num_classes={self.num_classes}, mean_depth={mean:.2f}, max_depth={self.max_depth})"


def _checked_children(children: Tensor) -> Tensor:
    """Return `children` if every class and every node but the root is the child of exactly one node."""
    if not isinstance(children, Tensor) or children.dtype != torch.int64:
        kind = children.dtype if isinstance(children, Tensor) else type(children).__name__
        raise TypeError(f"children: expected an int64 tensor (num_classes - 1, 2), got {kind}")
    if children.ndim != 2 or children.shape[1] != 2:
        raise ValueError(f"children: expected shape (num_classes - 1, 2), got {tuple(children.shape)}")
    if len(children) == 0:
        return children
    num_nodes, num_classes = len(children), len(children) + 1
    outside = (children < -num_classes) | (children >= num_nodes)
    if outside.any():
        node, turn = outside.nonzero()[0].tolist()
        raise ValueError(
            f"children: expected nodes in [0, {num_nodes}) and classes ~c with c in [0, {num_classes}), "
            f"got {children[node, turn].item()} at ({node}, {turn})"
        )
    parents = torch.bincount(children.flatten() + num_classes, minlength=num_nodes + num_classes)
    wanted = torch.ones_like(parents).index_fill_(0, torch.tensor([num_classes], device=parents.device), 0)
    wrong = (parents != wanted).nonzero()
    if len(wrong) > 0:
        place = int(wrong[0])
        child = f"class {num_classes - 1 - place}" if place < num_classes else f"node {place - num_classes}"
        raise ValueError(
            f"children: expected {child} to be the child of {wanted[place].item()} node, "
            f"got {parents[place].item()} of them"
        )
    return children


def _level_order(children: Tensor) -> list[Tensor]:
    """Return the nodes of each level, from the root down and from left to right."""
    level = torch.arange(min(len(children), 1), device=children.device)
    sweeps = [level]
    reached = len(level)
    while True:
        below = children[level].flatten()
        level = below[below >= 0]
        if len(level) == 0:
            break
        sweeps.append(level)
        reached += len(level)
    if reached < len(children):
        raise ValueError(f"children: expected one tree, got {len(children) - reached} nodes out of reach of node 0")
    return sweeps
