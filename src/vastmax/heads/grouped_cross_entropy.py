"""The cross-entropy of each row among the classes of one group, its target's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vastmax.arithmetic import without_autocast
from vastmax.checking import at_hand
from vastmax.fused import Fused, differentiable_by, keep, kept
from vastmax.heads.clusters import Clusters
from vastmax.scoring import plain as torchs
from vastmax.scoring.blocks import LinearScorer
from vastmax.scoring.chosen_losses import sampled_softmax
from vastmax.scoring.class_gradients import arithmetic
from vastmax.scoring.partition import RowStatistics, SplitPartition


def grouped_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, clusters: Clusters, *, sparse: bool
) -> Tensor:
    r"""Return the negative log-likelihood of each target among the classes of its own group.

    $$\ell_r = \log \sum_{c \in g(y_r)} e^{s_{rc}} - s_{r y_r}, \qquad s_{rc} = h_r \cdot w_c + b_c$$

    One matrix product for each group that has targets. Logits are scored again on the way back; the gradients of
    `weight` and `bias` have a row for each class of those groups, dense or sparse and coalesced. Computed in at
    least float32. Where it cannot be looked at which groups these are, the members of its group are each row's own
    classes, as many as the largest group has.

    Args:
        hidden: (N, d).
        weight: (V, d) class rows.
        bias: (V,) or None.
        target: (N,) class ids.
        clusters: the groups.
        sparse: give `weight` and `bias` sparse gradients.
    """
    if not at_hand(target):
        ids, padding = clusters.group_of(target)
        offset = torch.zeros(ids.shape, device=ids.device).masked_fill(padding, torch.inf)
        own = torch.zeros_like(offset[:, 0])
        return sampled_softmax(hidden, weight, bias, target, ids, own, offset, without_hits=True, sparse=sparse)
    loss: Tensor = _GroupedCrossEntropy.call(hidden, weight, bias, target, clusters, sparse)
    return loss


class _GroupedCrossEntropy(Fused):
    @staticmethod
    def plain(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        clusters: Clusters,
        sparse: bool,
    ) -> Tensor:
        loss = hidden.new_zeros(len(target), dtype=arithmetic(hidden, weight))
        for _, rows, scorer in _scorers(hidden, weight, bias, target, clusters):
            loss = loss.index_copy(0, rows, -torchs.statistics(scorer).log_prob)
        return loss

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        clusters: Clusters,
        sparse: bool,
    ) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        found = hidden.new_zeros(3, len(target), dtype=dtype)
        with without_autocast(hidden.device):
            for _, rows, scorer in _scorers(hidden, weight, bias, target, clusters):
                buffer = scorer.buffer()
                for block in scorer.row_blocks():
                    partition, _, _ = scorer.statistics(block, buffer)
                    found[:, rows[block]] = torch.stack(partition)
        keep(ctx, (hidden, weight, bias, target, clusters, sparse), found)
        return -SplitPartition(*found).log_prob

    @staticmethod
    @differentiable_by(plain)
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (hidden, weight, bias, target, clusters, sparse), (found,) = kept(ctx)
        wanted = ctx.needs_input_grad[:3]
        classes = classes_beside(target, clusters) if sparse else None
        grad_hidden = torch.zeros_like(hidden) if wanted[0] else None
        grad_weight = _ClassGradient(weight, classes) if wanted[1] else None
        grad_bias = _ClassGradient(bias, classes) if wanted[2] else None
        with without_autocast(hidden.device):
            for group, rows, scorer in _scorers(hidden, weight, bias, target, clusters):
                members = clusters.members(group)
                gradients = scorer.empty_gradients((wanted[0], False, False, False))
                gradients = gradients._replace(
                    weight=None if grad_weight is None else grad_weight.zeros(members, scorer.dtype),
                    bias=None if grad_bias is None else grad_bias.zeros(members, scorer.dtype),
                )
                buffer = scorer.buffer()
                for block in scorer.row_blocks():
                    partition = SplitPartition(*found[:, rows[block]])
                    none = torch.zeros_like(partition.maximum)
                    flows = RowStatistics(-upstream[rows[block]], none, none, none)
                    scorer.backward(block, buffer, partition, flows, gradients)
                if grad_hidden is not None and gradients.hidden is not None:
                    grad_hidden[rows] = gradients.hidden.to(grad_hidden.dtype)
                if grad_weight is not None and gradients.weight is not None:
                    grad_weight.put(members, gradients.weight)
                if grad_bias is not None and gradients.bias is not None:
                    grad_bias.put(members, gradients.bias)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.tensor(),
            None if grad_bias is None else grad_bias.tensor(),
            None,
            None,
            None,
        )


class _ClassGradient:
    """The gradient of a parameter with a row per class, filled group by group: dense, or of `classes` only."""

    def __init__(self, parameter: Tensor, classes: Tensor | None) -> None:
        self.parameter, self.classes = parameter, classes
        num_rows = len(parameter) if classes is None else len(classes)
        self.rows = parameter.new_zeros(num_rows, *parameter.shape[1:])

    def zeros(self, members: Tensor | slice, dtype: torch.dtype) -> Tensor:
        """Zeros for a group's gradient to be added to: where it belongs, if that is in one place."""
        place = self._place(members)
        if isinstance(place, slice) and dtype == self.rows.dtype:
            return self.rows[place]
        count = len(members) if isinstance(members, Tensor) else members.stop - members.start
        return self.rows.new_zeros(count, *self.rows.shape[1:], dtype=dtype)

    def put(self, members: Tensor | slice, rows: Tensor) -> None:
        """Keep a group's gradient, unless it was made where it belongs."""
        place = self._place(members)
        if isinstance(place, Tensor) or rows.dtype != self.rows.dtype:
            self.rows[place] = rows.to(self.rows.dtype)

    def _place(self, members: Tensor | slice) -> Tensor | slice:
        """Where a group's classes are among the rows."""
        if self.classes is None:
            return members
        if isinstance(members, slice):
            start = int(torch.searchsorted(self.classes, members.start))
            return slice(start, start + members.stop - members.start)
        return torch.searchsorted(self.classes, members)

    def tensor(self) -> Tensor:
        if self.classes is None:
            return self.rows
        return torch.sparse_coo_tensor(
            self.classes.unsqueeze(0), self.rows, self.parameter.shape, is_coalesced=True, check_invariants=False
        )


def classes_beside(target: Tensor, clusters: Clusters) -> Tensor:
    """Return the ids, rising, of the classes of all groups that have targets."""
    present = clusters.group[target].unique().tolist()
    return torch.cat([target.new_empty(0), *(clusters.member_ids(group) for group in present)]).sort().values


def _scorers(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, clusters: Clusters
) -> Iterator[tuple[int, Tensor, LinearScorer]]:
    """Each group with targets, its rows, and what scores them against its members."""
    groups, rows = clusters.group[target].sort(stable=True)
    present, counts = groups.unique_consecutive(return_counts=True)
    label = clusters.label(target)
    for group, rows_of_group in zip(present.tolist(), rows.split(counts.tolist()), strict=True):
        members = clusters.members(group)
        scorer = LinearScorer(
            hidden[rows_of_group], weight[members], None if bias is None else bias[members], label[rows_of_group]
        )
        yield group, rows_of_group, scorer
