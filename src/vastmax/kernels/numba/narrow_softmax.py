"""The softmax of a linear layer of many classes and few features, whose logits are cheaper made than stored.

A block of class rows is turned once, its classes side by side, and then serves every row of hidden from the nearest
cache: products, exponentials and sums run along the classes, and no logit leaves that cache.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vastmax.kernels.numba.compiling import inlined, kernel
from vastmax.kernels.numba.elementary import exponential
from vastmax.kernels.numba.gather import array
from vastmax.kernels.numba.threads import in_parts
from vastmax.kernels.reference import BlockSums

BLOCK = 256
"""Classes of a block: with 16 features, 16 KB of class rows and as many of their gradient."""

CHUNKS = 16
"""Parts of the classes whose gradients of hidden are summed apart: so many on any number of threads."""


def narrow_partition(hidden: Tensor, weight: Tensor, label: Tensor) -> tuple[Tensor, BlockSums]:
    """See `reference.narrow_partition`."""
    blocks = math.ceil(len(weight) / BLOCK)
    label_logit = hidden.new_zeros(len(hidden))
    sums = BlockSums(*hidden.new_empty(2, blocks, len(hidden)))
    least = hidden.new_tensor(torch.finfo(hidden.dtype).min).numpy()[()]
    arrays = [array(tensor) for tensor in (hidden, weight, label, label_logit, *sums)]
    in_parts(_masses, blocks, *arrays, least)
    return label_logit, sums


def narrow_partition_gradients(
    hidden: Tensor, weight: Tensor, label: Tensor, maximum: Tensor, grad_others: Tensor
) -> tuple[Tensor, Tensor]:
    """See `reference.narrow_partition_gradients`."""
    grad_hidden = hidden.new_zeros(CHUNKS, *hidden.shape)
    grad_weight = hidden.new_empty(weight.shape)
    arrays = [array(tensor) for tensor in (hidden, weight, label, maximum, grad_others, grad_hidden, grad_weight)]
    in_parts(_gradients, CHUNKS, *arrays)
    return grad_hidden.sum(0), grad_weight


@kernel
def _masses(
    hidden: Any,
    weight: Any,
    label: Any,
    label_logit: Any,
    maximum: Any,
    mass: Any,
    least: Any,
    start: int,
    stop: int,
) -> None:
    turned = np.zeros((hidden.shape[1], BLOCK), hidden.dtype)
    logits, scratch = np.empty(BLOCK, hidden.dtype), np.empty(BLOCK, hidden.dtype)
    zero = hidden.dtype.type(0)
    for block in range(start, stop):
        count = _turn(weight, block, turned)
        for row in range(len(hidden)):
            _score(hidden[row], turned, logits)
            logits[count:] = -np.inf
            column = label[row] - BLOCK * block
            if 0 <= column < count:
                label_logit[row] = logits[column]
                logits[column] = -np.inf
            shift = max(_largest(logits, scratch), least)
            total = zero
            for i in range(BLOCK):  # not in one loop with the sum, which would be of one number at a time
                scratch[i] = exponential(logits[i] - shift)
            for i in range(BLOCK):
                total += scratch[i]
            maximum[block, row], mass[block, row] = shift, total


@kernel
def _gradients(
    hidden: Any,
    weight: Any,
    label: Any,
    maximum: Any,
    grad_others: Any,
    grad_hidden: Any,
    grad_weight: Any,
    start: int,
    stop: int,
) -> None:
    num_rows, size = hidden.shape
    num_blocks = (len(weight) + BLOCK - 1) // BLOCK
    turned = np.zeros((size, BLOCK), hidden.dtype)
    grad_turned = np.zeros((size, BLOCK), hidden.dtype)
    slope = np.zeros((4, BLOCK), hidden.dtype)
    for chunk in range(start, stop):
        for block in range(num_blocks * chunk // CHUNKS, num_blocks * (chunk + 1) // CHUNKS):
            count = _turn(weight, block, turned)
            grad_turned[:] = 0
            # Four rows at a time, so that the gradient of a class row is read and written once for all of them.
            for first in range(0, num_rows, 4):
                four = min(4, num_rows - first)
                for k in range(four):
                    row = first + k
                    s = slope[k]
                    _score(hidden[row], turned, s)
                    for i in range(BLOCK):
                        s[i] = grad_others[row] * exponential(s[i] - maximum[row])
                    column = label[row] - BLOCK * block
                    if 0 <= column < count:
                        s[column] = 0
                    _add_products(s[:count], turned, grad_hidden[chunk, row])
                if four == 4:
                    h0, h1, h2, h3 = hidden[first], hidden[first + 1], hidden[first + 2], hidden[first + 3]
                    s0, s1, s2, s3 = slope[0], slope[1], slope[2], slope[3]
                    for j in range(size):
                        a0, a1, a2, a3 = h0[j], h1[j], h2[j], h3[j]
                        g = grad_turned[j]
                        for i in range(BLOCK):
                            g[i] += a0 * s0[i] + a1 * s1[i] + a2 * s2[i] + a3 * s3[i]
                else:
                    for k in range(four):
                        h0, s0 = hidden[first + k], slope[k]
                        for j in range(size):
                            a0 = h0[j]
                            g = grad_turned[j]
                            for i in range(BLOCK):
                                g[i] += a0 * s0[i]
            for i in range(count):
                for j in range(size):
                    grad_weight[BLOCK * block + i, j] = grad_turned[j, i]


@inlined
def _turn(weight: Any, block: int, turned: Any) -> int:
    """Write the class rows of a block into the columns of `turned`; return how many they are."""
    first = BLOCK * block
    count = min(BLOCK, len(weight) - first)
    for i in range(count):
        for j in range(len(turned)):
            turned[j, i] = weight[first + i, j]
    return count


@inlined
def _score(h: Any, turned: Any, logits: Any) -> None:
    """Multiply a row with the columns of `turned`."""
    logits[:] = 0
    j = 0
    while j + 4 <= len(turned):
        a0, a1, a2, a3 = h[j], h[j + 1], h[j + 2], h[j + 3]
        t0, t1, t2, t3 = turned[j], turned[j + 1], turned[j + 2], turned[j + 3]
        for i in range(BLOCK):
            logits[i] += a0 * t0[i] + a1 * t1[i] + a2 * t2[i] + a3 * t3[i]
        j += 4
    while j < len(turned):
        a0, t0 = h[j], turned[j]
        for i in range(BLOCK):
            logits[i] += a0 * t0[i]
        j += 1


@inlined
def _largest(x: Any, scratch: Any) -> Any:
    """Return the largest of x, folded in two again and again: element by element, which fills vectors."""
    for i in range(BLOCK // 2):
        scratch[i] = max(x[i], x[BLOCK // 2 + i])
    for i in range(BLOCK // 4):
        scratch[i] = max(scratch[i], scratch[BLOCK // 4 + i])
    for i in range(BLOCK // 8):
        scratch[i] = max(scratch[i], scratch[BLOCK // 8 + i])
    found = scratch[0]
    for i in range(1, BLOCK // 8):
        found = max(found, scratch[i])
    return found


@inlined
def _add_products(slope: Any, turned: Any, total: Any) -> None:
    """Add the product of the rows of `turned` with `slope`."""
    zero = total.dtype.type(0)
    j = 0
    while j + 4 <= len(turned):
        t0, t1, t2, t3 = turned[j], turned[j + 1], turned[j + 2], turned[j + 3]
        s0, s1, s2, s3 = zero, zero, zero, zero
        for i in range(len(slope)):
            x = slope[i]
            s0 += x * t0[i]
            s1 += x * t1[i]
            s2 += x * t2[i]
            s3 += x * t3[i]
        total[j] += s0
        total[j + 1] += s1
        total[j + 2] += s2
        total[j + 3] += s3
        j += 4
    while j < len(turned):
        t0, s0 = turned[j], zero
        for i in range(len(slope)):
            s0 += slope[i] * t0[i]
        total[j] += s0
        j += 1
