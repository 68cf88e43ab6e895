"""What the scalings share: held-out rows to fit to, logits to scale, and the layers they can be folded into."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vastmax.functional.softmax import check_logits
from vastmax.heads.flat import FlatHead
from vastmax.scoring.every_class import check_linear
from vastmax.validation import check_target


class Fit(NamedTuple):
    """The mean nll of the held-out rows before and after a scaling was fitted to them, in nats."""

    nll_before: float
    nll_after: float


class HeldOut(NamedTuple):
    """Rows that count: `values` (N, V) logits or (N, d) hidden, in at least float32, and `target` (N,)."""

    values: Tensor
    target: Tensor


def held_out_logits(logits: Tensor, target: Tensor, ignore_index: int) -> HeldOut:
    """Return the rows of logits (..., V) that count; raise TypeError or ValueError if none does."""
    check_logits(logits, -1)
    return _counted(logits, target, logits.shape[-1], ignore_index)


def held_out_hidden(
    hidden: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, ignore_index: int
) -> HeldOut:
    """Return the rows of hidden (..., d) that count; raise TypeError or ValueError if none does."""
    check_linear(hidden, linear_weight, linear_bias)
    return _counted(hidden, target, linear_weight.shape[0], ignore_index)


def _counted(values: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> HeldOut:
    counted = ~check_target(target, values.shape[:-1], num_classes, ignore_index)
    if not counted.any():
        raise ValueError(f"target: expected at least one held-out row, got none in shape {tuple(target.shape)}")
    rows = values.detach()[counted]
    return HeldOut(rows.to(torch.promote_types(rows.dtype, torch.float32)), target[counted])


def check_fit_starts(nll: float) -> None:
    """Raise ValueError unless the nll of the held-out rows is finite before anything is fitted."""
    if not math.isfinite(nll):
        raise ValueError(f"target: expected classes of finite logit, got a held-out nll of {nll}: is one masked?")


def scaled(logits: Tensor, factor: Tensor) -> Tensor:
    """Return logits times factor, where -inf, a masked class, stays so and has no part in the factor's gradient."""
    masked = logits.isneginf()
    return (logits.masked_fill(masked, 0.0) * factor).masked_fill(masked, -torch.inf)


class Scaling(nn.Module, ABC):
    """A change of the logits that is fitted to held-out rows."""

    @abstractmethod
    def fit_linear(
        self,
        hidden: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        ignore_index: int = -100,
    ) -> Fit:
        """Fit to the logits of a linear layer, without an N x V tensor."""

    def fit_head(self, head: FlatHead, hidden: Tensor, target: Tensor, *, ignore_index: int = -100) -> Fit:
        """Fit to a flat head and held-out hidden (..., d), its temperature and offsets included; see `fit_linear`.

        Raises:
            TypeError: not a flat head.
            ValueError: a head whose distribution is not the softmax of a linear layer.
        """
        if not isinstance(head, FlatHead):
            raise TypeError(f"head: expected a flat head, got {type(head).__name__}")
        check_softmax("head", head)
        head.check(hidden)
        with torch.no_grad():
            rows, bias = head.divide(hidden), head.exact_bias()
        return self.fit_linear(rows, head.weight, target, linear_bias=bias, ignore_index=ignore_index)


def check_softmax(name: str, head: FlatHead) -> None:
    """Raise ValueError unless a head's distribution is the softmax of linear logits."""
    if head.link is not None or type(head).log_prob is not FlatHead.log_prob:
        raise ValueError(
            f"{name}: expected a head whose distribution is the softmax of a linear layer, got "
            f"{type(head).__name__}, whose probabilities are made otherwise"
        )


def check_foldable(layer: nn.Linear | FlatHead) -> None:
    """Raise unless the layer's distribution is the softmax of its weight and bias, and of nothing else."""
    if isinstance(layer, nn.Linear):
        return
    if not isinstance(layer, FlatHead):
        raise TypeError(f"layer: expected a nn.Linear or a flat head, got {type(layer).__name__}")
    offset = layer.log_prob_offset()
    if offset is not None and not (offset.isneginf() | (offset == 0)).all():  # those stay what they are, scaled
        raise ValueError(
            "layer: expected a head whose distribution is the softmax of weight and bias alone, got "
            f"{type(layer).__name__}, which adds an offset per class"
        )
    check_softmax("layer", layer)
