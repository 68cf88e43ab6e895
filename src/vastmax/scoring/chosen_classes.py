"""Chosen classes: logits of some class rows, shared by all rows of hidden or each row's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vastmax.scoring.blocks import uncompiled
from vastmax.validation import check_class_rows, check_hidden, check_ids, check_per_class

GATHERED_ELEMENTS = 1 << 20
"""Gathered class rows alive at a time where each row has its own: 4 MB in float32 stay in the cache."""


class _ChosenLogits(torch.autograd.Function):
    """Several sets of ids scored together, so that `weight` gets one gradient with one row per unique class."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, sparse: bool, *id_sets: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(hidden, weight, bias, *id_sets)
        ctx.sparse = sparse
        with torch.autocast(hidden.device.type, enabled=False):
            return tuple(_score(hidden, weight, bias, ids) for ids in id_sets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *id_sets = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = grad_weight = grad_bias = None
        with torch.autocast(hidden.device.type, enabled=False):
            sets = list(zip(id_sets, upstream, strict=True))
            if wants_hidden:
                parts = [_weighted_rows(weight, ids, grad) for ids, grad in sets]
                grad_hidden = torch.stack(parts).sum(0).to(hidden.dtype)
            if wants_weight or wants_bias:
                segments = _Segments(torch.cat([ids.reshape(-1) for ids in id_sets]))
            if wants_weight:
                rows = segments.sum_rows(*_sources(hidden, sets)).to(weight.dtype)
                grad_weight = segments.gradient(rows, weight, ctx.sparse)
            if wants_bias:
                summed = [(grad.sum(0) if ids.ndim == 1 else grad).reshape(-1) for ids, grad in sets]
                rows = segments.sum_scalars(torch.cat(summed)).to(bias.dtype)
                grad_bias = segments.gradient(rows, bias, ctx.sparse)
        return grad_hidden, grad_weight, grad_bias, None, *(None for _ in id_sets)


class _Segments:
    """Occurrences of class ids, sorted so that those of one class stand together."""

    def __init__(self, ids: Tensor) -> None:
        sorted_ids, self.order = ids.sort()
        self.classes, self.counts = sorted_ids.unique_consecutive(return_counts=True)

    def sum_rows(self, table: Tensor, row: Tensor, coefficient: Tensor) -> Tensor:
        """Sum `coefficient * table[row]` over the occurrences of each class: (unique classes, d)."""
        starts = self.counts.cumsum(0) - self.counts
        return _gather_sum(table, row[self.order], starts, coefficient[self.order])

    def sum_scalars(self, values: Tensor) -> Tensor:
        """Sum one number per occurrence over each class: (unique classes,)."""
        segment = torch.arange(len(self.classes), device=values.device).repeat_interleave(self.counts)
        return values.new_zeros(len(self.classes)).index_add_(0, segment, values[self.order])

    def gradient(self, rows: Tensor, parameter: Tensor, sparse: bool) -> Tensor:
        """Place one gradient row per unique class: a coalesced sparse tensor, or zeros elsewhere."""
        if sparse:
            return torch.sparse_coo_tensor(
                self.classes.unsqueeze(0), rows, parameter.shape, is_coalesced=True, check_invariants=False
            )
        return torch.zeros_like(parameter).index_copy_(0, self.classes, rows)


def _score(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
    """Logits (N, K) of `ids`, (K,) or (N, K)."""
    dtype = _arithmetic(hidden, weight)
    hidden = hidden.to(dtype)
    if ids.ndim == 1:
        logits = hidden @ functional.embedding(ids, weight).to(dtype).t()
    else:
        logits = hidden.new_empty(ids.shape)
        step = max(1, GATHERED_ELEMENTS // max(ids.shape[1] * weight.shape[1], 1))
        for start in range(0, ids.shape[0], step):
            rows = slice(start, start + step)
            class_rows = functional.embedding(ids[rows], weight).to(dtype)
            torch.bmm(class_rows, hidden[rows].unsqueeze(-1), out=logits[rows].unsqueeze(-1))
    if bias is not None:
        logits += bias[ids].to(dtype)
    return logits


def _weighted_rows(weight: Tensor, ids: Tensor, coefficient: Tensor) -> Tensor:
    """Sum over the chosen classes of coefficient times class row: (N, d)."""
    if ids.ndim == 1:
        return coefficient @ functional.embedding(ids, weight).to(coefficient.dtype)
    if ids.shape[1] == 1:
        return coefficient * functional.embedding(ids.squeeze(-1), weight).to(coefficient.dtype)
    starts = torch.arange(ids.shape[0], device=ids.device) * ids.shape[1]
    return _gather_sum(weight, ids.reshape(-1), starts, coefficient.reshape(-1))


def _sources(hidden: Tensor, sets: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """A table of rows and, for each occurrence of a class, which of them it gets and how much of it.

    An id of a row's own set gets that row of `hidden`, times the gradient of its logit. A shared id gets a row
    of grad^T hidden, which one matrix product makes.
    """
    num_rows = hidden.shape[0]
    tables, rows, coefficients = [hidden.to(sets[0][1].dtype)], [], []
    length = num_rows
    for ids, grad in sets:
        if ids.ndim == 1:
            tables.append(grad.t() @ tables[0])
            rows.append(torch.arange(length, length + len(ids), device=ids.device))
            coefficients.append(grad.new_ones(len(ids)))
            length += len(ids)
        else:
            rows.append(torch.arange(num_rows, device=ids.device).repeat_interleave(ids.shape[1]))
            coefficients.append(grad.reshape(-1))
    return torch.cat(tables), torch.cat(rows), torch.cat(coefficients)


def _gather_sum(table: Tensor, ids: Tensor, starts: Tensor, coefficient: Tensor) -> Tensor:
    """Sum `coefficient * table[ids]` over consecutive runs of ids: (runs, d)."""
    if len(ids) == 0:
        return coefficient.new_zeros(len(starts), table.shape[1])
    if table.dtype != coefficient.dtype:
        # The rows of a half-precision table are summed in the dtype of the coefficients.
        ids_used, ids = ids.unique(return_inverse=True)
        table = table[ids_used].to(coefficient.dtype)
    return functional.embedding_bag(ids, table, starts, mode="sum", per_sample_weights=coefficient)


def _arithmetic(hidden: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)


@uncompiled
def chosen_logits(
    input: Tensor,
    linear_weight: Tensor,
    *ids: Tensor,
    linear_bias: Tensor | None = None,
    sparse: bool = False,
) -> tuple[Tensor, ...]:
    r"""Return the logits of chosen classes, one tensor per set of ids.

    $$s_{rj} = h_r \cdot w_{c_j} + b_{c_j} \quad \text{(shared ids } (K,)), \qquad
      s_{rj} = h_r \cdot w_{c_{rj}} + b_{c_{rj}} \quad \text{(a row's own ids } (\ldots, K))$$

    The sets are scored together so that `linear_weight` receives a single gradient, with one row per unique
    class: dense, or sparse and coalesced. No tensor of V rows is made with `sparse=True`.
    Half-precision inputs are multiplied and summed in float32, and the logits are float32.

    Args:
        input: (..., d) hidden rows.
        linear_weight: (V, d) class rows.
        *ids: int64 class ids, each (K,) for all rows or (..., K) with the leading shape of `input`.
        linear_bias: (V,) or None.
        sparse: give `linear_weight` and `linear_bias` sparse gradients, as `nn.Embedding(sparse=True)` does.

    Returns:
        A tuple of (..., K) logits.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit or an id out of range.

    Example:
        >>> hidden, weight = torch.randn(4, 8), torch.randn(1000, 8)
        >>> target, candidates = torch.tensor([[1], [2], [3], [4]]), torch.tensor([10, 20, 30])
        >>> target_logit, candidate_logit = chosen_logits(hidden, weight, target, candidates)
        >>> target_logit.shape, candidate_logit.shape
        (torch.Size([4, 1]), torch.Size([4, 3]))
    """
    check_class_rows("linear_weight", linear_weight)
    check_hidden("input", input, linear_weight.shape[1])
    check_per_class("linear_bias", linear_bias, linear_weight.shape[0])
    rows = input.shape[:-1]
    hidden = input.reshape(-1, linear_weight.shape[1])
    id_sets = []
    for id_set in ids:
        check_ids("ids", id_set, linear_weight.shape[0])
        own = id_set.ndim > 1 and id_set.shape[:-1] == rows
        if not own and id_set.ndim != 1:
            raise ValueError(
                f"ids: expected shape (K,), shared by the rows, or {(*rows, 'K')}, got {tuple(id_set.shape)}"
            )
        id_sets.append(id_set.reshape(hidden.shape[0], id_set.shape[-1]) if own else id_set)
    logits: tuple[Tensor, ...] = _ChosenLogits.apply(hidden, linear_weight, linear_bias, sparse, *id_sets)  # type: ignore[no-untyped-call]
    return tuple(scores.view(*rows, scores.shape[-1]) for scores in logits)
