"""Gradients of chosen class rows: one row per distinct class, and V of them only where they are asked for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.checking import at_hand
from vastmax.fused import Fused
from vastmax.kernels import implementation
from vastmax.scoring.updates_in_backward import check_not_replicated, update_of


class OfChosen(Fused):
    """A fused function of hidden, weight, bias and more, whose backward has `class_gradients` of the latter two."""

    @classmethod
    def call(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Any:
        """Return the function, unless its backward would update one of several replicas."""
        if not torch.compiler.is_compiling():
            check_not_replicated(weight, bias)
        return super().call(hidden, weight, bias, *arguments)


class ChosenSet(NamedTuple):
    """Ids that were scored, and the gradient of the loss with respect to their logits.

    Attributes:
        ids: (K,), shared by the rows, or (N, K), each row's own.
        slope: (N, K).
    """

    ids: Tensor
    slope: Tensor


def arithmetic(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of products of hidden and class rows: theirs, and at least float32."""
    return torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)


def class_rows(weight: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the class rows of `ids` in the dtype of the arithmetic."""
    return functional.embedding(ids, weight).to(dtype)


def gather_dot(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Return the products (N, K) of each row with class rows of its own."""
    found: Tensor = implementation("gather_dot", hidden, weight)(hidden, weight, ids)
    return found


def gather_sum(table: Tensor, ids: Tensor, starts: Tensor, coefficient: Tensor) -> Tensor:
    """Return the sums (S, d) of runs of table rows, each times its coefficient."""
    found: Tensor = implementation("gather_sum", table, coefficient)(table, ids, starts, coefficient)
    return found


def hidden_gradient(weight: Tensor, chosen: ChosenSet) -> Tensor:
    """Sum over the chosen classes of slope times class row: (N, d)."""
    ids, slope = chosen
    if ids.ndim == 1:
        return slope @ class_rows(weight, ids, slope.dtype)
    if ids.shape[1] == 1:
        return slope * class_rows(weight, ids.squeeze(-1), slope.dtype)
    starts = torch.arange(ids.shape[0], device=ids.device) * ids.shape[1]
    return gather_sum(weight, ids.reshape(-1), starts, slope.reshape(-1))


def class_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    chosen: list[ChosenSet],
    upstream: Tensor | None = None,
    *,
    sparse: bool,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of weight and bias, those that are wanted: dense, or sparse and coalesced.

    The slopes are those of each row's loss; `upstream` (N, 1) is the gradient with respect to these, 1 if omitted.
    """
    if not any(wanted):
        return None, None
    ids = torch.cat([ids.reshape(-1) for ids, _ in chosen])
    classes, starts, order = implementation("segments", weight)(ids, weight.shape[0])
    grad_weight = grad_bias = None
    if wanted[0]:
        table, row, coefficient = _sources(hidden, chosen, upstream)
        grad_weight = _gradient(weight, classes, table, (row[order], starts, coefficient[order]), sparse)
    if wanted[1] and bias is not None:
        slopes = torch.cat([_summed(*one, upstream) for one in chosen]).unsqueeze(-1)
        grad_bias = _gradient(bias, classes, slopes, (order, starts, slopes.new_ones(len(order))), sparse)
    return grad_weight, grad_bias


def _sources(hidden: Tensor, chosen: list[ChosenSet], upstream: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """A table of rows and, for each occurrence of a class, which of them it gets and how much of it.

    An id of a row's own set gets that row of `hidden`, times the slope of its logit. A shared id gets a row of
    slope^T hidden, which one matrix product makes.
    """
    num_rows = hidden.shape[0]
    length = num_rows + sum(len(ids) for ids, _ in chosen if ids.ndim == 1)
    table = hidden.new_empty(length, hidden.shape[1])
    # N rows of hidden are scaled rather than N x K slopes.
    scaled = (
        table[:num_rows].copy_(hidden) if upstream is None else torch.mul(hidden, upstream, out=table[:num_rows])
    )
    rows, coefficients = [], []
    length = num_rows
    for ids, slope in chosen:
        if ids.ndim == 1:
            torch.mm(slope.t(), scaled, out=table[length : length + len(ids)])
            rows.append(torch.arange(length, length + len(ids), device=ids.device))
            coefficients.append(slope.new_ones(len(ids)))
            length += len(ids)
        else:
            rows.append(torch.arange(num_rows, device=ids.device).repeat_interleave(ids.shape[1]))
            coefficients.append(slope.reshape(-1))
    return table, torch.cat(rows), torch.cat(coefficients)


def _summed(ids: Tensor, slope: Tensor, upstream: Tensor | None) -> Tensor:
    """The gradient with respect to each id's logits: one number an id."""
    if ids.ndim == 1:
        return slope.sum(0) if upstream is None else (upstream.t() @ slope).squeeze(0)
    return (slope if upstream is None else slope * upstream).reshape(-1)


def _gradient(
    parameter: Tensor, classes: Tensor, table: Tensor, runs: tuple[Tensor, Tensor, Tensor], sparse: bool
) -> Tensor | None:
    """Sum the runs of the table into one row per distinct class: a coalesced sparse tensor, or zeros elsewhere.

    A parameter that is updated within the backward pass takes them at once, and there is no gradient.
    """
    update = update_of(parameter)
    if update is not None:
        update(classes, table, runs)
        return None
    rows = gather_sum(table, *runs).to(parameter.dtype).view(len(classes), *parameter.shape[1:])
    distinct = at_hand(classes)
    if not distinct:  # places left over, whose sums are 0, are given to a class that is touched anyway
        classes = torch.where(classes < 0, classes[:1], classes)
    if sparse:
        return torch.sparse_coo_tensor(
            classes.unsqueeze(0), rows, parameter.shape, is_coalesced=distinct, check_invariants=False
        )
    zeros = torch.zeros_like(parameter)
    return zeros.index_copy_(0, classes, rows) if distinct else zeros.index_add_(0, classes, rows)
