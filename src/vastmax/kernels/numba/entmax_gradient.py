"""What follows from the entmax of rows: its gradient, its maximum and that one's slope, from the support alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from vastmax.kernels.numba.compiling import inlined, kernel
from vastmax.kernels.numba.elementary import largest
from vastmax.kernels.numba.entmax import places_above
from vastmax.kernels.numba.gather import array, rows_worth
from vastmax.kernels.numba.threads import in_parts

MOST = math.log(np.finfo(np.float64).max) / 2
"""Past the square root of the largest number, a slope stands for infinity."""

TERMS = 20
"""Of the series of the moment: the rest is below the rounding for arguments from -1 to 0."""


def entmax_gradient(
    found: Tensor, order: Tensor, upstream: Tensor, *, log: bool, of_order: bool
) -> tuple[Tensor, Tensor | None]:
    """See `reference.entmax_gradient`."""
    grad_logits = found.new_empty(found.shape)
    grad_order = found.new_empty(len(found) if of_order else 0, 1)
    arrays = [array(x) for x in (found, order.flatten(), upstream, grad_logits, grad_order)]
    in_parts(_entmax_gradient, len(found), *arrays, log, at_least=rows_worth(found.shape[1]))
    return grad_logits, grad_order if of_order else None


def entmax_conjugate(logits: Tensor, probability: Tensor, order: Tensor) -> Tensor:
    """See `reference.entmax_conjugate`."""
    found = logits.new_empty(len(logits))
    arrays = [array(x) for x in (logits, probability, order.flatten(), found)]
    in_parts(_entmax_conjugate, len(logits), *arrays, at_least=rows_worth(logits.shape[1]))
    return found


def tsallis_entropy_slope(probability: Tensor, order: Tensor) -> Tensor:
    """See `reference.tsallis_entropy_slope`."""
    found = probability.new_empty(len(probability))
    arrays = [array(x) for x in (probability, order.flatten(), found)]
    in_parts(_tsallis_entropy_slope, len(found), *arrays, at_least=rows_worth(probability.shape[1]))
    return found


@kernel
def _entmax_gradient(
    found: Any, order: Any, upstream: Any, grad_logits: Any, grad_order: Any, log: bool, start: int, stop: int
) -> None:
    place = np.empty(found.shape[1] + 1, np.int64)
    slope, weighted = np.empty(found.shape[1], np.float64), np.empty(found.shape[1], np.float64)
    nothing = found.dtype.type(-np.inf if log else 0.0)
    for row in range(start, stop):
        a = order[row if len(order) > 1 else 0]
        p, u, grad = found[row], upstream[row], grad_logits[row]
        n = places_above(p, nothing, place)
        least = 0
        for j in range(n):
            c = place[j]
            least = j if p[c] < p[place[least]] else least
            log_p = np.float64(p[c]) if log else math.log(np.float64(p[c]))
            probability = math.exp(log_p) if log else np.float64(p[c])
            slope[j] = _slope(probability, log_p, a)
            # The slope of log p is 1 / p of that of p, also where p is no number above 0.
            weighted[j] = u[c] * (_slope_of_log(log_p, a) if log else slope[j])
        if a > 1:
            # The smallest probability has by far the largest slope: the rest is counted from its upstream gradient.
            origin = weighted[least] / slope[least]
            for j in range(n):
                weighted[j] -= slope[j] * origin
            weighted[least] = 0.0
        total_weighted, total_slope = 0.0, 0.0
        for j in range(n):
            total_weighted += weighted[j]
            total_slope += slope[j]
        grad[:] = 0
        of_order = 0.0
        for j in range(n):
            c = place[j]
            g = weighted[j] - slope[j] * (total_weighted / total_slope)
            grad[c] = g
            if len(grad_order) > 0:
                log_p = np.float64(p[c]) if log else math.log(np.float64(p[c]))
                of_order -= g * log_p * log_p * _first_moment(a * log_p)
        if len(grad_order) > 0:
            grad_order[row, 0] = of_order


@inlined
def _slope(probability: float, log_p: float, a: float) -> Any:
    if a == 1:
        return 1.0
    if a == 0.5:
        return math.sqrt(probability)
    return _slope_of_log(log_p, a) * probability


@inlined
def _slope_of_log(log_p: float, a: float) -> Any:
    return math.exp(min(-a * log_p, MOST))


@kernel
def _entmax_conjugate(logits: Any, probability: Any, order: Any, found: Any, start: int, stop: int) -> None:
    place = np.empty(logits.shape[1] + 1, np.int64)
    for row in range(start, stop):
        a = order[row if len(order) > 1 else 0]
        s, p = logits[row], probability[row]
        top = np.float64(largest(s, s[0]))
        total = 0.0
        for j in range(places_above(p, p.dtype.type(0), place)):
            c = place[j]
            log_p = math.log(np.float64(p[c]))
            total += p[c] * (np.float64(s[c]) - top - _log_alpha(log_p, a) / (1 + a))
        # The largest logit alone gives 0: less than that is rounding.
        found[row] = max(total, 0.0)


@kernel
def _tsallis_entropy_slope(probability: Any, order: Any, found: Any, start: int, stop: int) -> None:
    place = np.empty(probability.shape[1] + 1, np.int64)
    for row in range(start, stop):
        a = order[row if len(order) > 1 else 0]
        p = probability[row]
        total = 0.0
        for j in range(places_above(p, p.dtype.type(0), place)):
            log_p = math.log(np.float64(p[place[j]]))
            slope = log_p * log_p * _first_moment(a * log_p) - _log_alpha(log_p, a) / (1 + a)
            total -= p[place[j]] * slope / (1 + a)
        found[row] = total


@inlined
def _log_alpha(log_p: float, a: float) -> Any:
    return math.expm1(a * log_p) / a if a > 0 else log_p


@inlined
def _first_moment(z: float) -> Any:
    r"""$M_1(z) = \int_0^1 t e^{tz} dt = \sum_k z^k / (k! (k + 2))$ of z up to 0."""
    if z < -1:
        return (math.exp(z) * (z - 1) + 1) / (z * z)
    total, power = 0.0, 1.0
    for k in range(TERMS):
        total += power / (k + 2)
        power *= z / (k + 1)
    return total
