"""Best-first search: the most probable classes of a tree, without a look at the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.trees.tree import Tree


class Search(NamedTuple):
    """The k most probable classes of each row, and what it took to find them.

    Attributes:
        values: (..., k) log-probabilities in nats, falling.
        indices: (..., k) int64 class ids.
        visited: (...) int64, the number of nodes scored.
    """

    values: Tensor
    indices: Tensor
    visited: Tensor


def best_first(
    tree: Tree,
    node_logit: Callable[[Tensor, Tensor], Tensor],
    num_rows: int,
    k: int,
    *,
    max_visited: int,
    dtype: torch.dtype,
) -> tuple[Search, Tensor]:
    r"""Find the k most probable classes of each row that needs no more than `max_visited` nodes for it.

    No class is more probable than a node above it. So the most probable of the nodes and classes at hand, if it is
    a class, is the next answer; if it is a node, it has to be scored. The nodes scored are those more probable than
    the k-th answer and no other (of those equal to it, the ones that came to hand before it).

    Of equals the lowest ids are wanted. What is at hand beside the k answers, as probable as the last of them, may
    be one or have one below: such a row is given up. Where nothing at hand has a probability above 0, the search
    ends: what is left are impossible classes, all alike.

    All rows go in lockstep. What a row has at hand grows by one a step and is looked through at every step: n
    steps take O(n^2), which `max_visited` bounds.

    Args:
        tree: on the device of the rows.
        node_logit: from rows (M,) and a node for each (M,) to logits (M,).
        num_rows: N.
        k: answers wanted, at most V.
        max_visited: nodes that may be scored for a row.
        dtype: of the log-probabilities.

    Returns:
        The search, (N, k), (N, k) and (N,), its classes of value -inf undefined; and the rows (R,) it was given up
        for, whose answers are undefined.
    """
    values = torch.full((num_rows, k), -torch.inf, dtype=dtype, device=tree.device)
    indices = torch.zeros(num_rows, k, dtype=torch.int64, device=tree.device)
    found, visited = indices.new_zeros(num_rows), indices.new_zeros(num_rows)
    rows = torch.arange(num_rows, device=tree.device)
    if max_visited < k - 1:  # n nodes have n + 1 children at hand
        return Search(values, indices, visited), rows

    least = torch.finfo(dtype).min  # stands for log 0 among what is at hand, where -inf is an empty place
    at_hand = torch.full((num_rows, 1), 0 if tree.num_nodes > 0 else ~0, device=tree.device)
    log_prob = values.new_zeros(num_rows, 1)
    given_up = [rows[:0]]
    while len(rows) > 0:
        best, place = log_prob.max(-1, keepdim=True)
        item = at_hand.gather(-1, place).squeeze(-1)

        is_class = (item < 0).nonzero().squeeze(-1)
        answered = rows[is_class]
        values[answered, found[answered]] = best[is_class, 0]
        indices[answered, found[answered]] = ~item[is_class]
        found[answered] += 1

        # The left child takes the node's place and the right child a new one; a class leaves both empty.
        below = torch.full_like(best.expand(-1, 2), -torch.inf)
        children = torch.zeros_like(below, dtype=torch.int64)
        is_node = (item >= 0).nonzero().squeeze(-1)
        if len(is_node) > 0:
            logit = node_logit(rows[is_node], item[is_node])
            turns = torch.stack([functional.logsigmoid(logit), functional.logsigmoid(-logit)], -1)
            below[is_node] = (best[is_node] + turns).clamp(min=least)
            children[is_node] = tree.children[item[is_node]]
            visited[rows[is_node]] += 1
        log_prob = torch.cat([log_prob.scatter(-1, place, below[:, :1]), below[:, 1:]], -1)
        at_hand = torch.cat([at_hand.scatter(-1, place, children[:, :1]), children[:, 1:]], -1)

        possible = best.squeeze(-1) > least
        searching, within = possible & (found[rows] < k), visited[rows] <= max_visited
        if not (searching & within).all():
            undecided = possible & ~searching & (log_prob.amax(-1) == best.squeeze(-1))
            given_up.append(rows[(searching & ~within) | undecided])
            kept = (searching & within).nonzero().squeeze(-1)
            rows, log_prob, at_hand = rows[kept], log_prob[kept], at_hand[kept]
    values.masked_fill_(values == least, -torch.inf)
    return Search(values, indices, visited), torch.cat(given_up)
