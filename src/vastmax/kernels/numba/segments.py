"""Occurrences of class ids, sorted digit by digit: no comparisons, O(L) for each 11 bits of an id."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vastmax.kernels.numba.compiling import kernel
from vastmax.kernels.numba.gather import array
from vastmax.kernels.reference.segments import Segments

BITS = 11
"""Of a digit: the counts of 2048 values stay in the first-level cache."""


def segments(ids: Tensor, num_classes: int) -> Segments:
    """See `reference.segments`."""
    order, starts = torch.empty_like(ids), torch.empty_like(ids)
    classes = torch.empty_like(ids)
    digits = -(-max(num_classes - 1, 1).bit_length() // BITS)
    size = _segments(array(ids), array(order), array(classes), array(starts), digits)
    return Segments(classes[:size], starts[:size], order)


@kernel
def _segments(ids: Any, order: Any, classes: Any, starts: Any, digits: int) -> int:
    length = len(ids)
    source, target = np.arange(length), np.empty(length, np.int64)
    count = np.empty(1 << BITS, np.int64)
    for digit in range(digits):
        shift = BITS * digit
        count[:] = 0
        for i in range(length):
            count[(ids[i] >> shift) & ((1 << BITS) - 1)] += 1
        before = 0
        for value in range(1 << BITS):
            before, count[value] = before + count[value], before
        for i in range(length):
            place = source[i]
            value = (ids[place] >> shift) & ((1 << BITS) - 1)
            target[count[value]] = place
            count[value] += 1
        source, target = target, source
    size = 0
    for i in range(length):
        order[i] = source[i]
        value = ids[source[i]]
        if size == 0 or classes[size - 1] != value:
            classes[size], starts[size] = value, i
            size += 1
    return size
