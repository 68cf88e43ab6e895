"""Where to cut the classes of an adaptive softmax: a model of what a training step costs, and its minimum."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vastmax.validation import check_counts, check_finite_number, check_int, check_positive_int, shown

MAX_CLUSTERS = 5
"""Tails considered where their number is left open; Grave et al. find that more than five gain nothing."""

PRODUCT_FLOOR = 5e6
"""Multiply-adds that a product too small to fill the machine costs, launch and bookkeeping included."""

UPDATE_COST = 50.0
"""Multiply-adds, each done forward and twice backward, in the time that one parameter's gradient is zeroed and
written and its optimizer step made: 30 to 60 on a CPU with a fused Adagrad."""


@dataclass(frozen=True)
class StepCost:
    r"""The modelled cost of a training step, in multiply-adds of one matrix product.

    With $p_i$ the share of rows whose class is in tail i, $d_i$ the tail's width, $k_i$ its classes, B rows and
    $t_i = 1 - (1 - p_i)^B$ the probability that a step touches the tail,

    $$\text{tail}_i = \max(t_i c, \; B p_i d_i (d + k_i)) + t_i u \, d_i (d + k_i), \qquad
      \text{head} = \max(c, \; B d (k_h + J)) + u \, d (k_h + J).$$

    The first terms are the products, constant until they fill the machine and linear from there (Grave et al.,
    Section 4); the second are the dense gradient and the optimizer step, which have no part in their model but
    are most of a step where the classes outnumber the rows.

    Attributes:
        mass: (V + 1,) share of rows whose class is below c, from 0 to 1.
        in_features: d.
        batch_size: B.
        div_value: the factor by which each tail is narrower than the one before.
        product_floor: c, what the smallest product costs.
        update_cost: u, what a parameter's update costs.
    """

    mass: NDArray[np.float64]
    in_features: int
    batch_size: int
    div_value: float
    product_floor: float
    update_cost: float

    def head(self, shortlist: ArrayLike, num_clusters: int) -> NDArray[np.float64]:
        """The cost of the head, for each size of the shortlist."""
        parameters = self.in_features * (np.asarray(shortlist, dtype=np.float64) + num_clusters)
        products = np.maximum(self.product_floor, self.batch_size * parameters)
        return np.asarray(products + self.update_cost * parameters)

    def tail(self, index: int, start: ArrayLike, stop: ArrayLike) -> NDArray[np.float64]:
        """The cost of tail `index` of the classes from `start` to `stop`."""
        start, stop = np.asarray(start), np.asarray(stop)
        share = np.clip(self.mass[stop] - self.mass[start], 0.0, 1.0)
        with np.errstate(divide="ignore"):  # log1p(-1): a tail that has every row is touched for certain
            touched = -np.expm1(self.batch_size * np.log1p(-share))
        parameters = tail_width(self.in_features, self.div_value, index) * (self.in_features + stop - start)
        products = np.maximum(touched * self.product_floor, self.batch_size * share * parameters)
        return np.asarray(products + touched * self.update_cost * parameters)

    def total(self, cutoffs: Sequence[int]) -> float:
        """The cost of a step with these cutoffs."""
        edges = [*cutoffs, len(self.mass) - 1]
        tails = (self.tail(i, edges[i], edges[i + 1]) for i in range(len(cutoffs)))
        return float(self.head(edges[0], len(cutoffs)) + sum(tails))

    def best(self, num_clusters: int, positions: NDArray[np.int64]) -> tuple[float, list[int]]:
        """The least cost with this many tails, of one width, that start at some of `positions`; their cutoffs."""
        ends = np.append(positions, len(self.mass) - 1)
        start, stop = ends[:, None], ends[None, :]
        cost = np.where(start < stop, self.tail(0, start, np.maximum(start, stop)), np.inf)
        # rest[a]: the least cost of so many tails, the first of which starts at ends[a], that hold all from there.
        rest = np.where(ends == ends[-1], 0.0, np.inf)
        choices = []
        for _ in range(num_clusters):
            choices.append((cost + rest).argmin(1))
            rest = (cost + rest).min(1)
        total = self.head(ends, num_clusters) + rest
        place = int(total.argmin())
        least, cutoffs = float(total[place]), []
        for choice in reversed(choices):
            cutoffs.append(int(ends[place]))
            place = int(choice[place])
        return least, cutoffs


def adaptive_cutoffs(
    counts: Tensor | ArrayLike,
    in_features: int,
    *,
    batch_size: int = 1024,
    div_value: float = 4.0,
    num_clusters: int | None = None,
    min_width: int = 4,
    product_floor: float = PRODUCT_FLOOR,
    update_cost: float = UPDATE_COST,
    num_positions: int = 256,
) -> list[int]:
    r"""Return the cutoffs of an adaptive softmax whose training step would cost least were all tails as wide as d.

    The model is that of `adaptive_cost` with `div_value=1`. As in the paper, the cut is chosen apart from the
    widths: narrow tails are cheap because they are less accurate, and a choice that counted that as a gain would
    leave next to nothing in the shortlist.

    Dynamic programming over a grid of positions finds the minimum in O(positions^2 x clusters); with as many
    positions as classes, the minimum over all cutoffs.

    Args:
        counts: (V,) how often each class occurs, 0 or greater; the classes sorted by falling frequency, as the
            head has them.
        in_features: d.
        batch_size: rows of a step.
        div_value: the factor by which each tail is narrower than the one before: it limits their number.
        num_clusters: tails wanted; from none to five, whichever costs least, if omitted.
        min_width: the width that the last tail is to have at least.
        product_floor: the cost of a product too small to fill the machine, in multiply-adds.
        update_cost: the cost of one parameter's gradient and optimizer step, in multiply-adds.
        num_positions: size of the grid, spaced evenly in the logarithm.

    Returns:
        Increasing class ids at which the tails start; none where the plain softmax costs least.

    Raises:
        TypeError, ValueError: an argument that is not as above, or more tails than the classes can fill or the
            widths allow.

    References:
        Grave, Joulin, Cisse, Grangier and Jegou, Efficient softmax approximation for GPUs, 2017.

    Example:
        >>> zipf = 1 / torch.arange(1, 100_001)
        >>> adaptive_cutoffs(zipf, 256, num_clusters=2)
        [3000, 31447]
    """
    div_value = check_finite_number("div_value", div_value, at_least=1.0)
    cost = _step_cost(counts, in_features, batch_size, 1.0, product_floor, update_cost)
    num_classes = len(cost.mass) - 1
    min_width = check_positive_int("min_width", min_width)
    possible = min(num_classes - 1, _num_widths(cost.in_features, div_value, min_width))
    if num_clusters is not None:
        num_clusters = check_positive_int("num_clusters", num_clusters)
    if num_clusters is not None and num_clusters > possible:
        raise ValueError(
            f"num_clusters: expected at most {possible}, which {num_classes} classes, in_features={in_features}, "
            f"div_value={div_value:g} and min_width={min_width} allow, got {num_clusters}"
        )
    choices = range(min(possible, MAX_CLUSTERS) + 1) if num_clusters is None else [num_clusters]
    positions = _log_spaced(num_classes, max(check_positive_int("num_positions", num_positions), *choices))
    return min((cost.best(number, positions) for number in choices), key=lambda found: found[0])[1]


def adaptive_cost(
    cutoffs: Sequence[int],
    counts: Tensor | ArrayLike,
    in_features: int,
    *,
    batch_size: int = 1024,
    div_value: float = 4.0,
    product_floor: float = PRODUCT_FLOOR,
    update_cost: float = UPDATE_COST,
) -> float:
    r"""Return the modelled cost of a training step of an adaptive softmax with these cutoffs.

    In multiply-adds, each of which a step makes three times: forward, and backward for the two factors. The
    formula is `StepCost`'s.

    Args:
        cutoffs: increasing class ids at which the tails start.
        counts: (V,) how often each class occurs.
        in_features: d.
        batch_size: rows of a step.
        div_value: the factor by which each tail is narrower than the one before.
        product_floor: the cost of a product too small to fill the machine.
        update_cost: the cost of one parameter's gradient and optimizer step.

    Raises:
        TypeError, ValueError: an argument that is not as above.

    Example:
        >>> adaptive_cost([], torch.ones(1000), 10, batch_size=1000, update_cost=0.0)
        10000000.0
    """
    cost = _step_cost(counts, in_features, batch_size, div_value, product_floor, update_cost)
    return cost.total(check_cutoffs(cutoffs, len(cost.mass) - 1, cost.in_features, cost.div_value))


def tail_width(in_features: int, div_value: float, index: int) -> int:
    """The size to which tail `index` projects hidden rows."""
    return int(in_features // div_value ** (index + 1))


def check_cutoffs(cutoffs: object, num_classes: int, in_features: int, div_value: float) -> list[int]:
    """Return the cutoffs as a list if they increase within (0, num_classes) and no tail has width 0."""
    if isinstance(cutoffs, str) or not isinstance(cutoffs, Sequence):
        raise TypeError(f"cutoffs: expected 'auto' or a sequence of integers, got {shown(cutoffs)}")
    cutoffs = [check_int("cutoffs", cutoff) for cutoff in cutoffs]
    for cutoff in cutoffs:
        if not 0 < cutoff < num_classes:
            raise ValueError(f"cutoffs: expected class ids in [1, {num_classes}), got {shown(cutoff)}")
    for before, after in itertools.pairwise(cutoffs):
        if before >= after:
            raise ValueError(f"cutoffs: expected increasing class ids, got {before} before {after}")
    positive = _num_widths(in_features, div_value)
    if len(cutoffs) > positive:
        raise ValueError(
            f"cutoffs: expected at most {positive}, got {len(cutoffs)}: with in_features={in_features} and "
            f"div_value={div_value:g}, tail {positive} would have width 0"
        )
    return cutoffs


def _num_widths(in_features: int, div_value: float, min_width: int = 1) -> int:
    """How many tails have at least that width, counted up to a number that nobody needs."""
    return next((i for i in range(64) if tail_width(in_features, div_value, i) < min_width), 64)


def _step_cost(
    counts: Tensor | ArrayLike,
    in_features: int,
    batch_size: int,
    div_value: float,
    product_floor: float,
    update_cost: float,
) -> StepCost:
    frequency = check_counts("counts", counts).cpu()
    cumulative = torch.cat([frequency.new_zeros(1), frequency.cumsum(0)]).numpy()
    return StepCost(
        mass=cumulative / cumulative[-1],
        in_features=check_positive_int("in_features", in_features),
        batch_size=check_positive_int("batch_size", batch_size),
        div_value=check_finite_number("div_value", div_value, at_least=1.0),
        product_floor=check_finite_number("product_floor", product_floor, at_least=0.0),
        update_cost=check_finite_number("update_cost", update_cost, at_least=0.0),
    )


def _log_spaced(num_classes: int, num_positions: int) -> NDArray[np.int64]:
    """Increasing ids in [1, num_classes): at equal ratios, or where that is less than a step, one by one."""
    if num_positions >= num_classes - 1:
        return np.arange(1, num_classes)
    positions = [1]
    for left in range(num_positions - 1, 0, -1):
        ratio = ((num_classes - 1) / positions[-1]) ** (1 / left)
        positions.append(max(positions[-1] + 1, round(positions[-1] * ratio)))
    return np.array(positions)
