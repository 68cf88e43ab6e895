"""The softmax of a block of logits, a row at a time while the row is in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vastmax.kernels.numba.compiling import kernel
from vastmax.kernels.numba.elementary import exponential, largest
from vastmax.kernels.numba.gather import array, rows_worth
from vastmax.kernels.numba.threads import in_parts
from vastmax.kernels.reference.softmax_block import BlockSums


def exponentials_(logits: Tensor) -> BlockSums:
    """See `reference.exponentials_`."""
    sums = BlockSums(logits.new_empty(len(logits)), logits.new_empty(len(logits)))
    least = logits.new_tensor(torch.finfo(logits.dtype).min).numpy()[()]
    arrays = [array(tensor) for tensor in (logits, *sums)]
    in_parts(_exponentials, len(logits), *arrays, least, at_least=rows_worth(8 * logits.shape[1]))
    return sums


def row_sums(logits: Tensor) -> BlockSums:
    """See `reference.row_sums`."""
    sums = BlockSums(logits.new_empty(len(logits)), logits.new_empty(len(logits)))
    least = logits.new_tensor(torch.finfo(logits.dtype).min).numpy()[()]
    arrays = [array(tensor) for tensor in (logits, *sums)]
    in_parts(_row_sums, len(logits), *arrays, least, at_least=rows_worth(8 * logits.shape[1]))
    return sums


def softmax_gradient_(logits: Tensor, log_partition: Tensor, upstream: Tensor) -> None:
    """See `reference.softmax_gradient_`."""
    arrays = [array(tensor) for tensor in (logits, log_partition, upstream)]
    in_parts(_softmax_gradient, len(logits), *arrays, at_least=rows_worth(8 * logits.shape[1]))


def column_maxima(block: Tensor, scale: Tensor) -> Tensor:
    """See `reference.column_maxima`."""
    found = block.new_empty(block.shape[1])
    arrays = [array(tensor) for tensor in (block, scale, found)]
    in_parts(_column_maxima, block.shape[1], *arrays, at_least=rows_worth(2 * block.shape[0]))
    return found


@kernel
def _exponentials(logits: Any, maximum: Any, mass: Any, least: Any, start: int, stop: int) -> None:
    for row in range(start, stop):
        s = logits[row]
        shift = largest(s, least)
        total = least - least
        for j in range(len(s)):
            e = exponential(s[j] - shift)
            s[j] = e
            total += e
        maximum[row], mass[row] = shift, total


@kernel
def _row_sums(logits: Any, maximum: Any, mass: Any, least: Any, start: int, stop: int) -> None:
    for row in range(start, stop):
        s = logits[row]
        shift = largest(s, least)
        total = least - least
        for j in range(len(s)):
            total += exponential(s[j] - shift)
        maximum[row], mass[row] = shift, total


@kernel
def _softmax_gradient(logits: Any, log_partition: Any, upstream: Any, start: int, stop: int) -> None:
    for row in range(start, stop):
        s, shift, u = logits[row], log_partition[row], upstream[row]
        for j in range(len(s)):
            s[j] = u * exponential(s[j] - shift)


@kernel
def _column_maxima(block: Any, scale: Any, found: Any, start: int, stop: int) -> None:
    largest_yet = found[start:stop]
    largest_yet[:] = -np.inf
    for row in range(len(block)):
        values, factor = block[row, start:stop], scale[row]
        for j in range(len(values)):
            p = factor * values[j]
            largest_yet[j] = p if p > largest_yet[j] else largest_yet[j]
