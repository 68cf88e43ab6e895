"""Losses of each row's logits of some classes: class rows are read once, while they are in the cache.

A softmax is taken of logits less the target's, and its loss, where the target leads, from the others' mass alone:
neither an offset of the logits nor a small loss costs digits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vastmax.kernels.numba.compiling import kernel
from vastmax.kernels.numba.elementary import exponential, largest, log1p_of_share
from vastmax.kernels.numba.gather import add_row, array, dot_row, rows_worth
from vastmax.kernels.numba.threads import in_parts
from vastmax.kernels.reference.chosen_losses import RowLosses


def logistic_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    positive: Tensor,
    offset: Tensor,
    share: Tensor,
    scale: float,
) -> RowLosses:
    """See `reference.logistic_rows`."""
    found = _empty(hidden, ids)
    inputs = (hidden, weight, _bias(bias, weight), ids, positive, offset, share)
    arrays = [array(tensor) for tensor in (*inputs, *found)]
    worth = rows_worth(2 * ids.shape[1] * weight.shape[1])
    in_parts(_logistic_rows, len(ids), *arrays, hidden.new_tensor(scale).numpy()[()], at_least=worth)
    return found


def softmax_rows(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, offset: Tensor, scale: float
) -> RowLosses:
    """See `reference.softmax_rows`."""
    found = _empty(hidden, ids)
    arrays = [array(tensor) for tensor in (hidden, weight, _bias(bias, weight), ids, offset, *found)]
    worth = rows_worth(2 * ids.shape[1] * weight.shape[1])
    in_parts(_softmax_rows, len(ids), *arrays, hidden.new_tensor(scale).numpy()[()], at_least=worth)
    return found


def logistic_logits_(logits: Tensor, offset: Tensor, scale: float) -> Tensor:
    """See `reference.logistic_logits_`."""
    loss = logits.new_empty(len(logits))
    arrays = [array(tensor) for tensor in (logits, _rows_of(offset), loss)]
    worth = rows_worth(8 * logits.shape[1])
    in_parts(_logistic_logits, len(logits), *arrays, logits.new_tensor(scale).numpy()[()], at_least=worth)
    return loss


def softmax_logits_(
    target_logit: Tensor,
    logits: Tensor,
    target_offset: Tensor,
    offset: Tensor,
    ids: Tensor,
    left_out: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """See `reference.softmax_logits_`."""
    loss, slope = torch.empty_like(target_logit), torch.empty_like(target_logit)
    tensors = (target_logit, logits, target_offset, _rows_of(offset), ids, left_out, loss, slope)
    arrays = [array(tensor) for tensor in tensors]
    worth = rows_worth(8 * logits.shape[1])
    in_parts(_softmax_logits, len(logits), *arrays, logits.new_tensor(scale).numpy()[()], at_least=worth)
    return loss, slope


def _empty(hidden: Tensor, ids: Tensor) -> RowLosses:
    return RowLosses(
        hidden.new_empty(len(ids)),
        hidden.new_empty(ids.shape),
        torch.empty_like(hidden, memory_format=torch.contiguous_format),
    )


def _bias(bias: Tensor | None, weight: Tensor) -> Tensor:
    """The bias, or nothing, which a kernel tells by its length."""
    return weight.new_empty(0) if bias is None else bias


def _rows_of(offset: Tensor) -> Tensor:
    """One row for all, or one for each."""
    return offset.unsqueeze(0) if offset.ndim == 1 else offset


@kernel
def _logistic_rows(
    hidden: Any,
    weight: Any,
    bias: Any,
    ids: Any,
    positive: Any,
    offset: Any,
    share: Any,
    loss: Any,
    slope: Any,
    grad_hidden: Any,
    scale: Any,
    start: int,
    stop: int,
) -> None:
    zero, one = scale - scale, scale / scale
    for row in range(start, stop):
        dot_row(hidden[row], weight, ids[row], slope[row])
        if len(bias) > 0:
            for j in range(ids.shape[1]):
                slope[row, j] += bias[ids[row, j]]
        total = zero
        for j in range(ids.shape[1]):
            x = scale * slope[row, j] - offset[row, j]
            against = -x if positive[row, j] else x
            e = exponential(-abs(against))
            sigmoid = (one if against >= zero else e) / (one + e)
            softplus = max(against, zero) + log1p_of_share(e)
            v = share[row, j]
            total += v * softplus if v != zero else zero
            signed = -sigmoid if positive[row, j] else sigmoid
            slope[row, j] = scale * v * signed if v != zero else zero
        loss[row] = total
        add_row(slope[row], weight, ids[row], grad_hidden[row])


@kernel
def _softmax_rows(
    hidden: Any,
    weight: Any,
    bias: Any,
    ids: Any,
    offset: Any,
    loss: Any,
    slope: Any,
    grad_hidden: Any,
    scale: Any,
    start: int,
    stop: int,
) -> None:
    zero, nothing = scale - scale, hidden.dtype.type(-np.inf)
    for row in range(start, stop):
        dot_row(hidden[row], weight, ids[row], slope[row])
        if len(bias) > 0:
            for j in range(ids.shape[1]):
                slope[row, j] += bias[ids[row, j]]
        base = slope[row, 0] if slope[row, 0] > nothing else zero
        for j in range(ids.shape[1]):
            slope[row, j] = scale * (slope[row, j] - base) - offset[row, j]
        target = slope[row, 0]
        shift = largest(slope[row], target)
        others = zero
        for j in range(1, ids.shape[1]):
            e = exponential(slope[row, j] - shift)
            slope[row, j] = e
            others += e
        total = others + exponential(target - shift)
        loss[row] = math.log1p(others) if target == shift else math.log(total) + (shift - target)
        slope[row, 0] = -scale * (others / total)
        for j in range(1, ids.shape[1]):
            slope[row, j] *= scale / total
        add_row(slope[row], weight, ids[row], grad_hidden[row])


@kernel
def _logistic_logits(logits: Any, offset: Any, loss: Any, scale: Any, start: int, stop: int) -> None:
    zero, one = scale - scale, scale / scale
    for row in range(start, stop):
        s, o = logits[row], offset[row if len(offset) > 1 else 0]
        total = zero
        for j in range(len(s)):
            x = scale * s[j] - o[j]
            e = exponential(-abs(x))
            total += max(x, zero) + log1p_of_share(e)
            s[j] = scale * (one if x >= zero else e) / (one + e)
        loss[row] = total


@kernel
def _softmax_logits(
    target_logit: Any,
    logits: Any,
    target_offset: Any,
    offset: Any,
    ids: Any,
    left_out: Any,
    loss: Any,
    slope: Any,
    scale: Any,
    start: int,
    stop: int,
) -> None:
    zero, nothing = scale - scale, logits.dtype.type(-np.inf)
    for row in range(start, stop):
        s, o = logits[row], offset[row if len(offset) > 1 else 0]
        if left_out[row] >= 0:
            for j in range(len(s)):
                s[j] = nothing if ids[j] == left_out[row] else s[j]
        base = target_logit[row] if target_logit[row] > nothing else zero
        target = scale * (target_logit[row] - base) - target_offset[row]
        for j in range(len(s)):
            s[j] = scale * (s[j] - base) - o[j]
        shift = largest(s, target)
        others = zero
        for j in range(len(s)):
            e = exponential(s[j] - shift)
            s[j] = e
            others += e
        total = others + exponential(target - shift)
        loss[row] = math.log1p(others) if target == shift else math.log(total) + (shift - target)
        slope[row] = -scale * (others / total)
        for j in range(len(s)):
            s[j] *= scale / total
