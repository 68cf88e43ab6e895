"""What a target asks of its row: true classes, and the share of the row that each of them has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vastmax import checking
from vastmax.checking import require
from vastmax.reduction import CountedRows, reduce_rows
from vastmax.validation import check_all, check_distinct, check_finite, sums_of_rows


class Rows(NamedTuple):
    """Rows with one true class each.

    Attributes:
        hidden: (M, d).
        target: (M,) int64.
        counted: which of all true classes (..., T) they are.
    """

    hidden: Tensor
    target: Tensor
    counted: CountedRows


RowLoss = Callable[[Rows], Tensor]
"""The loss (M,) of rows."""


@dataclass(frozen=True)
class TrueClasses:
    """The losses of the rows' true classes, and how much of the row each of them is.

    Args:
        loss: (..., T), 0 in places that do not count.
        share: (..., T), 0 in places that do not count.
        classes: (..., T) ids, 0 in places that do not count; None where T is V and every class has its place.
        weighed: whether the losses hold the class weights already.
    """

    loss: Tensor
    share: Tensor
    classes: Tensor | None = None
    weighed: bool = False

    def loss_of_rows(self) -> Tensor:
        """The loss of each row (...); a class without a share adds nothing, though its loss were infinite."""
        return (self.share * self.loss.masked_fill(self.share == 0, 0.0)).sum(-1)

    def reduce(self, reduction: str, sample_weight: Tensor | None, class_weight: Tensor | None) -> Tensor:
        """The loss of the rows, each class weighed, reduced."""
        ignored = no_share(self.share)
        if class_weight is None:
            loss, mass = self.loss_of_rows(), None
        else:
            weight = class_weight.to(self.loss.dtype)
            share = self.share * (weight if self.classes is None else weight[self.classes])
            loss = (self if self.weighed else replace(self, share=share)).loss_of_rows()
            mass = mean_weight(share, self.share)
        return reduce_rows(loss, reduction=reduction, weight=sample_weight, mass=mass, ignored=ignored)


def no_share(share: Tensor) -> Tensor:
    """Return which rows take no part, (...) bool: those whose target has no share of them."""
    return share.sum(-1) == 0


def mean_weight(weighted_share: Tensor, share: Tensor) -> Tensor:
    """Return the mean class weight (...) of the rows' targets; 0 where the target has no share."""
    total = share.sum(-1)
    return weighted_share.sum(-1) / torch.where(total == 0, torch.ones_like(total), total)


def mean_class_weight(probability: Tensor, class_weight: Tensor) -> Tensor:
    """Return the mean class weight (...) of targets that are the classes' probabilities (..., V)."""
    dtype = class_weight.dtype
    return sums_of_rows(probability, dtype, class_weight) / sums_of_rows(probability, dtype)


def shares(
    hidden: Tensor, target: Tensor, ignore_index: int, target_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the true classes of each row, which of them count, and the share of each: all (..., T)."""
    classes = target if target.ndim == hidden.ndim else target.unsqueeze(-1)
    counted = classes != ignore_index
    if target_weight is None:
        share = counted.double() / counted.sum(-1, keepdim=True).clamp(min=1)
    else:
        share = target_weight.masked_fill(~counted, 0.0)
    return classes.masked_fill(~counted, 0), counted, share


@torch.no_grad()
def unmasked(bias: Tensor | None, classes: Tensor) -> Tensor | None:
    """Return which of `classes` have a bias other than -inf, (...) bool; None where no class has a bias."""
    return None if bias is None else ~bias[classes].isneginf()


def check_several(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raise ValueError unless integers (..., T) without shares can only be the ids of several true classes.

    A class that is named twice in a row is a mistake, or the integers are no ids: three columns or more of a 0/1
    matrix have a number twice in every row. As many columns as classes, with nothing but 0 and 1 in them, are such
    a matrix however few they are.
    """
    advice = "it looks like a 0/1 matrix: pass .float(), or beside ids a target_weight"
    if checking.are_off():
        return
    if target.shape[-1] == num_classes and target.numel() > 0:
        expected = (
            f"target: expected class ids, got 0 and 1 alone in {num_classes} columns, one per class: {advice}"
        )
        require(~_is_zero_one(target), expected)
    try:
        check_distinct("target", target, ignore_index)
    except ValueError as twice:
        raise ValueError(f"{twice}: {advice}" if _is_zero_one(target) else str(twice)) from None


def _is_zero_one(target: Tensor) -> Tensor:
    return ((target == 0) | (target == 1)).all()


def check_target_weight(target_weight: Tensor, target: Tensor, several: bool) -> None:
    """Raise unless the target has several true classes per row, and each a finite share of at least 0."""
    if not several or target.is_floating_point():
        raise ValueError(
            "target_weight: expected beside a target of several class ids per row, (..., T), "
            f"got a target of {target.dtype} and shape {tuple(target.shape)}"
        )
    if not isinstance(target_weight, Tensor) or not target_weight.is_floating_point():
        raise TypeError("target_weight: expected a floating-point tensor with one share per true class")
    if target_weight.shape != target.shape:
        raise ValueError(
            f"target_weight: expected shape {tuple(target.shape)}, that of target, got {tuple(target_weight.shape)}"
        )
    check_finite("target_weight", target_weight)
    check_all("target_weight", "shares of at least 0", target_weight, target_weight >= 0)
