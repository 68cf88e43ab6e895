"""The one reduction: from a loss per row to what the caller asked for."""

import torch
from torch import Tensor

from vastmax import checking
from vastmax.validation import check_all, check_choice, check_finite

REDUCTIONS = ("none", "mean", "sum")


def reduce_rows(
    loss: Tensor,
    *,
    reduction: str = "mean",
    weight: Tensor | None = None,
    mass: Tensor | None = None,
    ignored: Tensor | None = None,
) -> Tensor:
    r"""Reduce a loss per row.

    $$\text{sum} = \sum_r w_r \ell_r, \qquad \text{mean} = \frac{\sum_r w_r \ell_r}{\sum_r w_r m_r},$$

    over the rows that are not ignored. With no row left, or no weight, both are 0 and stay attached to the
    graph (torch's mean is nan there, which a batch of padding then spreads through a model).

    Args:
        loss: (...) loss per row, in nats.
        reduction: `"none"` keeps (...), with 0 in ignored rows; `"mean"` and `"sum"` return a scalar.
        weight: (...) weight per row, 0 or greater; 1 if omitted.
        mass: (...) m, what a row counts for in the mean: the weight that is in its loss already; 1 if omitted.
        ignored: (...) bool, True where a row takes no part.

    Raises:
        ValueError: an unknown reduction, or a `weight`, `mass` or `ignored` of another shape than `loss`.

    Example:
        >>> loss = torch.tensor([1.0, 2.0, 9.0])
        >>> reduce_rows(loss, weight=torch.tensor([1.0, 3.0, 0.0]))
        tensor(1.7500)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    for name, rows in (("weight", weight), ("mass", mass), ("ignored", ignored)):
        if rows is not None and rows.shape != loss.shape:
            raise ValueError(f"{name}: expected shape {tuple(loss.shape)}, one per row, got {tuple(rows.shape)}")
    if weight is not None:  # a row of no weight counts for nothing, though its loss were infinite
        loss = loss.masked_fill(weight == 0, 0.0) * weight.to(loss.dtype)
    if ignored is not None:
        loss = loss.masked_fill(ignored, 0.0)
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    counted = torch.ones_like(loss) if weight is None else weight.to(loss.dtype)
    if mass is not None:
        counted = counted * mass.to(loss.dtype)
    if ignored is not None:
        counted = counted.masked_fill(ignored, 0.0)
    return total / total_weight(counted)


class CountedRows:
    """The rows that count, of all: picked out where their number can be known, and else all, the others blank.

    Rows that do not count cost nothing where they are picked out. But how many do is a number on the device, which
    the program would have to wait for, and which no compiled graph knows: there the others are made 0, scored like
    any, and their values left out.

    Args:
        counted: (...) bool.
        every: whether all of them are known to count.
    """

    def __init__(self, counted: Tensor, *, every: bool = False) -> None:
        self.counted = counted
        at_hand = checking.at_hand(counted)
        # All of them need not be picked out, which copies the rows.
        self._all = every or (at_hand and bool(counted.all()))
        self._places = None  # among all rows, in order
        if at_hand and not self._all:
            self._places = counted.reshape(-1).nonzero().squeeze(-1)

    @property
    def blank(self) -> Tensor | None:
        """(M,) bool: which of the rows that are left do not count; None where there are none."""
        return None if self._all or self._places is not None else ~self.counted.reshape(-1)

    @property
    def none(self) -> bool:
        """Whether no row is known to count."""
        return self._places is not None and len(self._places) == 0

    def of(self, rows: Tensor) -> Tensor:
        """Return the rows (M, ...) of a tensor (..., ...)."""
        features = rows.shape[self.counted.ndim :]
        flat = rows.reshape(self.counted.numel(), *features)
        if self._places is not None:
            return flat.index_select(0, self._places)
        if self._all:
            return flat
        return flat.masked_fill(~self.counted.view(-1, *(1,) * len(features)), 0)

    def in_their_places(self, values: Tensor) -> Tensor:
        """Return values (M,) in the shape (...) of all rows, 0 in those that do not count.

        Not by `masked_scatter`, whose gradient fails in torch's forward mode.
        """
        if self._places is not None:
            places = self.counted.reshape(-1)
            zero_first = torch.cat([values.new_zeros(1), values])
            values = zero_first.index_select(0, places * places.cumsum(0))
        values = values.view(self.counted.shape)
        return values if self.blank is None else values.masked_fill(~self.counted, 0.0)


def total_weight(weight: Tensor) -> Tensor:
    """Return the sum of the rows' weights, or 1 where that is 0."""
    total = weight.sum()
    return torch.where(total == 0, torch.ones_like(total), total)


def check_sample_weight(sample_weight: Tensor, rows: torch.Size) -> None:
    """Raise unless `sample_weight` has one finite weight of at least 0 per row."""
    if not isinstance(sample_weight, Tensor) or not sample_weight.is_floating_point():
        raise TypeError("sample_weight: expected a floating-point tensor with one weight per row")
    if sample_weight.shape != rows:
        raise ValueError(
            f"sample_weight: expected shape {tuple(rows)}, one per row, got {tuple(sample_weight.shape)}"
        )
    check_finite("sample_weight", sample_weight)
    check_all("sample_weight", "weights of at least 0", sample_weight, sample_weight >= 0)
