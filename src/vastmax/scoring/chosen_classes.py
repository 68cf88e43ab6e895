"""Chosen classes: logits of some class rows, shared by all rows of hidden or each row's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vastmax.arithmetic import without_autocast
from vastmax.fused import Shapes, differentiable_by, keep, kept
from vastmax.scoring import plain as torchs
from vastmax.scoring.class_gradients import (
    ChosenSet,
    OfChosen,
    arithmetic,
    class_gradients,
    class_rows,
    gather_dot,
    hidden_gradient,
)
from vastmax.validation import check_class_rows, check_hidden, check_ids, check_per_class


class _ChosenLogits(OfChosen):
    """Several sets of ids scored together, so that `weight` gets one gradient with one row per unique class."""

    arguments = "Tensor hidden, Tensor weight, Tensor? bias, bool sparse, Tensor[] id_sets"

    @staticmethod
    def num_outputs(*arguments: Any) -> int:
        return len(arguments) - 4

    @staticmethod
    def shapes(
        wanted: list[int], hidden: Tensor, weight: Tensor, bias: Tensor | None, sparse: bool, *id_sets: Tensor
    ) -> Shapes:
        dtype = arithmetic(hidden, weight)
        return [hidden.new_empty(hidden.shape[0], ids.shape[-1], dtype=dtype) for ids in id_sets], []

    @staticmethod
    def plain(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, sparse: bool, *id_sets: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(torchs.chosen_logits(hidden, weight, bias, ids) for ids in id_sets)

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, sparse: bool, *id_sets: Tensor
    ) -> tuple[Tensor, ...]:
        keep(ctx, (hidden, weight, bias, sparse, *id_sets))
        with without_autocast(hidden.device):
            return tuple(_score(hidden, weight, bias, ids) for ids in id_sets)

    @staticmethod
    @differentiable_by(plain)
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (hidden, weight, bias, sparse, *id_sets), _ = kept(ctx)
        wants_hidden, *wanted = ctx.needs_input_grad[:3]
        grad_hidden = None
        with without_autocast(hidden.device):
            chosen = [ChosenSet(ids, slope) for ids, slope in zip(id_sets, upstream, strict=True)]
            if wants_hidden:
                parts = [hidden_gradient(weight, one) for one in chosen]
                grad_hidden = torch.stack(parts).sum(0).to(hidden.dtype)
            rows = hidden.to(arithmetic(hidden, weight))
            of_classes = class_gradients(rows, weight, bias, chosen, sparse=sparse, wanted=tuple(wanted))
        return grad_hidden, *of_classes, None, *(None for _ in id_sets)


def _score(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
    """Logits (N, K) of `ids`, (K,) or (N, K)."""
    hidden = hidden.to(arithmetic(hidden, weight))
    bias = None if bias is None else bias[ids].to(hidden.dtype)
    if ids.ndim == 1:
        of_classes = class_rows(weight, ids, hidden.dtype).t()
        return hidden @ of_classes if bias is None else torch.addmm(bias, hidden, of_classes)
    logits = gather_dot(hidden, weight, ids)
    return logits if bias is None else logits + bias


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
    logits: tuple[Tensor, ...] = _ChosenLogits.call(hidden, linear_weight, linear_bias, sparse, *id_sets)
    return tuple(scores.view(*rows, scores.shape[-1]) for scores in logits)
