"""Class rows read where they lie: products with them, and sums of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vastmax.kernels.numba.compiling import inlined, kernel
from vastmax.kernels.numba.threads import in_parts

PART_ELEMENTS = 1 << 18
"""Elements whose work is worth a thread of its own."""

_TYPES = {getattr(torch, name): np.dtype(name).str for name in ("float32", "float64", "int32", "int64", "bool")}


def gather_dot(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """See `reference.gather_dot`."""
    logits = hidden.new_empty(ids.shape)
    arrays = (array(hidden), array(weight), array(ids), array(logits))
    in_parts(_gather_dot, len(ids), *arrays, at_least=rows_worth(ids.shape[1] * weight.shape[1]))
    return logits


def gather_sum(table: Tensor, ids: Tensor, starts: Tensor, coefficient: Tensor) -> Tensor:
    """See `reference.gather_sum`."""
    sums = coefficient.new_empty(len(starts), table.shape[1])
    arrays = (array(table), array(ids), array(starts), array(coefficient), array(sums))
    run = max(1, len(ids) // max(len(starts), 1))
    in_parts(_gather_sum, len(starts), *arrays, at_least=rows_worth(run * table.shape[1]))
    return sums


def array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor's memory as a contiguous array.

    Not by `Tensor.numpy`, which makes the memory one that can never be resized again: torch does that to a sparse
    gradient that another is added to, and FSDP to parameters that are not in use.
    """
    return np.asarray(_Memory(tensor.contiguous()))


class _Memory:
    """What NumPy makes an array of, which keeps this, and this the tensor."""

    __slots__ = ("__array_interface__", "_tensor")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.__array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": tensor.shape,
            "typestr": _TYPES[tensor.dtype],
            "version": 3,
        }


def rows_worth(elements: int) -> int:
    """Return how many rows of so many elements are worth a thread."""
    return max(1, PART_ELEMENTS // max(elements, 1))


@inlined
def dot_row(h: Any, weight: Any, ids: Any, logits: Any) -> None:
    """Multiply one row with the class rows of `ids`."""
    zero = h.dtype.type(0)
    size = len(h)
    j = 0
    # Four rows in flight: their cache misses overlap.
    while j + 4 <= len(ids):
        w0, w1, w2, w3 = weight[ids[j]], weight[ids[j + 1]], weight[ids[j + 2]], weight[ids[j + 3]]
        s0, s1, s2, s3 = zero, zero, zero, zero
        for i in range(size):
            x = h[i]
            s0 += x * w0[i]
            s1 += x * w1[i]
            s2 += x * w2[i]
            s3 += x * w3[i]
        logits[j], logits[j + 1], logits[j + 2], logits[j + 3] = s0, s1, s2, s3
        j += 4
    while j < len(ids):
        w0 = weight[ids[j]]
        s0 = zero
        for i in range(size):
            s0 += h[i] * w0[i]
        logits[j] = s0
        j += 1


@inlined
def add_row(coefficient: Any, table: Any, ids: Any, total: Any) -> None:
    """Sum the table's rows of `ids`, each as often as its coefficient says."""
    size = table.shape[1]
    total[:] = 0
    i = 0
    while i + 4 <= len(ids):
        t0, t1, t2, t3 = table[ids[i]], table[ids[i + 1]], table[ids[i + 2]], table[ids[i + 3]]
        x0, x1, x2, x3 = coefficient[i], coefficient[i + 1], coefficient[i + 2], coefficient[i + 3]
        for j in range(size):
            total[j] += x0 * t0[j] + x1 * t1[j] + x2 * t2[j] + x3 * t3[j]
        i += 4
    while i < len(ids):
        t0, x0 = table[ids[i]], coefficient[i]
        for j in range(size):
            total[j] += x0 * t0[j]
        i += 1


@kernel
def _gather_dot(hidden: Any, weight: Any, ids: Any, logits: Any, start: int, stop: int) -> None:
    for row in range(start, stop):
        dot_row(hidden[row], weight, ids[row], logits[row])


@kernel
def _gather_sum(table: Any, ids: Any, starts: Any, coefficient: Any, sums: Any, start: int, stop: int) -> None:
    for run in range(start, stop):
        first = starts[run]
        end = starts[run + 1] if run + 1 < len(starts) else len(ids)
        add_row(coefficient[first:end], table, ids[first:end], sums[run])
