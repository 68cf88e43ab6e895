"""The entmax of rows: one pass for the largest logit, one for the few classes near it, the rest among these."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from vastmax.kernels.numba.compiling import inlined, kernel
from vastmax.kernels.numba.elementary import largest
from vastmax.kernels.numba.gather import array, rows_worth
from vastmax.kernels.numba.threads import in_parts

CHUNK = 128
"""Classes that are looked at one by one only if their largest has to be."""

EPS = float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float64).tiny)


def entmax(logits: Tensor, order: Tensor, *, log: bool) -> Tensor:
    """See `reference.entmax`."""
    found = logits.new_empty(logits.shape)
    arrays = (array(logits), array(order.flatten()), array(found))
    in_parts(_entmax, len(logits), *arrays, log, at_least=rows_worth(logits.shape[1]))
    return found


@kernel
def _entmax(logits: Any, order: Any, found: Any, log: bool, start: int, stop: int) -> None:
    values = np.empty(logits.shape[1], np.float64)
    place = np.empty(logits.shape[1] + 1, np.int64)
    nothing = logits.dtype.type(-np.inf if log else 0.0)
    for row in range(start, stop):
        a = order[row if len(order) > 1 else 0]
        s, p = logits[row], found[row]
        top = largest(s, s[0])
        # Rounded to the logits' dtype the bound may rise, but not past the next of their values.
        bound = logits.dtype.type(np.float64(top) - 1 / a)
        n = places_above(s, np.nextafter(bound, logits.dtype.type(-np.inf)), place)
        for j in range(n):
            values[j] = np.float64(s[place[j]]) - np.float64(top)
        n = _steep(values, place, n, a) if a > 1 else _gentle(values, place, n, a, log)
        p[:] = nothing
        for j in range(n):
            p[place[j]] = math.log(values[j]) if log and a > 1 else values[j]


@inlined
def places_above(row: Any, bound: Any, place: Any) -> Any:
    """Write where a row is above the bound, and return in how many places; `place` has room for one more."""
    found = 0
    for begin in range(0, len(row), CHUNK):
        chunk = row[begin : begin + CHUNK]
        if largest(chunk, bound) > bound:
            for i in range(len(chunk)):
                place[found] = begin + i
                found += chunk[i] > bound
    return found


@inlined
def _gentle(values: Any, place: Any, n: int, a: float, log: bool) -> Any:
    """Put probabilities, or their logarithms, where the logits were: `_gentle` of the reference, row by row."""
    partition = 0.0
    while True:
        total, slope, inside = _sums(values, n, a, partition)
        step = -total * (math.expm1(-a * math.log(total)) / a if a > 0 else -math.log(total)) / slope
        if not step > 4 * EPS * (1 + partition):
            break
        partition += step
        # The partition only rises: who is outside the support now stays there.
        if 2 * inside < n:
            n = _keep_above(values, place, n, partition - 1 / a)
    for j in range(n):
        x = values[j] - partition
        values[j] = _log_exp_alpha(x, a) - math.log(total) if log else _exp_alpha(x, a) / total
    return n


@inlined
def _sums(values: Any, n: int, a: float, partition: float) -> Any:
    """The sums of the alpha-exponentials and of their slopes, and how many are above 0."""
    total, slope, inside = 0.0, 0.0, 0
    if a == 0.5:
        for j in range(n):
            root = max(1 + (values[j] - partition) / 2, 0.0)
            total += root * root
            slope += root
            inside += root > 0
    elif a == 1:
        for j in range(n):
            p = max(1 + (values[j] - partition), 0.0)
            total += p
            inside += p > 0
        slope = float(inside)
    else:
        for j in range(n):
            x = values[j] - partition
            if a * x > -1:
                p = _exp_alpha(x, a)
                total += p
                slope += p / (1 + a * x)
                inside += 1
    return total, slope, inside


@inlined
def _exp_alpha(x: float, a: float) -> Any:
    if a == 1:
        return max(1 + x, 0.0)
    if a == 0.5:
        return max(1 + x / 2, 0.0) ** 2
    return math.exp(_log_exp_alpha(x, a))


@inlined
def _log_exp_alpha(x: float, a: float) -> Any:
    if a == 0:
        return x
    return math.log1p(a * x) / a if a * x > -1 else -np.inf


@inlined
def _keep_above(values: Any, place: Any, n: int, bound: float) -> Any:
    """Leave out the candidates up to the bound, and return how many stay."""
    kept = 0
    for j in range(n):
        value, where = values[j], place[j]
        values[kept], place[kept] = value, where
        kept += value > bound
    return kept


@inlined
def _steep(values: Any, place: Any, n: int, a: float) -> Any:
    """Put probabilities where the logits were: `_steep` of the reference, row by row."""
    # Who is in the support is found as by quickselect: each class is in it if the larger ones leave it anything.
    least = 0.0
    while True:
        pivot = _middle_below(values, n, least)
        if pivot == -np.inf:
            break
        if _excess_sum(values, n, pivot, a) < 1:
            least = pivot
        else:
            n = _keep_above(values, place, n, pivot)
    for j in range(n):
        values[j] = _excess(values[j], least, a)
    smallest = 1 / n
    while True:
        total, slope = 0.0, 0.0
        for j in range(n):
            p = _norm(smallest, values[j], a)
            total += p
            slope += (smallest / p) ** (a - 1)
        step = (total - 1) / slope
        if not step > 4 * EPS:
            break
        smallest = max(smallest - step, TINY)
    for j in range(n):
        values[j] = _norm(smallest, values[j], a) / total
    return n


@inlined
def _middle_below(values: Any, n: int, bound: float) -> Any:
    """Of the values below the bound, the one with as many of them before it as after; -inf if there is none."""
    below = 0
    for j in range(n):
        below += values[j] < bound
    after = below // 2
    for j in range(n):
        if values[j] < bound:
            if after == 0:
                return values[j]
            after -= 1
    return -np.inf


@inlined
def _excess_sum(values: Any, n: int, least: float, a: float) -> Any:
    total = 0.0
    for j in range(n):
        if values[j] > least:
            total += _excess(values[j], least, a)
    return total


@inlined
def _excess(value: float, least: float, a: float) -> Any:
    """The probability of a logit if that of the logit `least` were 0."""
    return (a * (value - least)) ** (1 / a)


@inlined
def _norm(x: float, y: float, a: float) -> Any:
    """The a-norm of two numbers."""
    larger, smaller = max(x, y), min(x, y)
    return larger * (1 + (smaller / larger) ** a) ** (1 / a)
