"""The probabilities of entmax: a program finds the threshold of its row, in float64, block by block."""

# ruff: noqa: N803  (constants of a compilation have names in capitals, as in all of Triton)
from __future__ import annotations

import torch
from torch import Tensor
from triton import language as tl  # type: ignore[import-untyped]

from vastmax.kernels import reference
from vastmax.kernels.triton.compiling import kernel, launch, next_power_of_2

LOGITS_AT_A_TIME = 1 << 10
"""Logits of a row that a program holds at a time: few, as most blocks hold none that can have a probability."""

TOLERANCE = tl.constexpr(4 * torch.finfo(torch.float64).eps)


@torch.no_grad()
def entmax(logits: Tensor, order: Tensor, *, log: bool) -> Tensor:
    """See `reference.entmax`, which also solves the orders that are 0 or greater than 1."""
    if not ((order > 0) & (order <= 1)).all():
        return reference.entmax(logits, order, log=log)
    found = torch.empty_like(logits, memory_format=torch.contiguous_format)
    shared = order.item() if len(order) == 1 else None
    launch(
        _entmax,
        len(logits),
        logits,
        order,
        found,
        logits.shape[1],
        *logits.stride(),
        0 if len(order) == 1 else order.stride(0),
        LOG=log,
        SHARED_ORDER=shared if shared in (0.5, 1.0) else None,
        BLOCK_V=min(next_power_of_2(logits.shape[1]), LOGITS_AT_A_TIME),
    )
    return found


@kernel
def _base(x: tl.tensor, largest: tl.tensor, partition: tl.tensor, a: tl.tensor) -> tl.tensor:
    """Return p^a of logits, 1 + a (s - A), 0 outside the support."""
    return tl.maximum(1 + a * ((x.to(tl.float64) - largest) - partition), 0.0)


@kernel
def _entmax(
    logits: tl.tensor,
    order: tl.tensor,
    found: tl.tensor,
    num_classes: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    order_stride: tl.tensor,
    LOG: tl.constexpr,
    SHARED_ORDER: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    a = tl.load(order + row * order_stride)
    block = tl.arange(0, BLOCK_V).to(tl.int64)
    largest = tl.full((BLOCK_V,), float("-inf"), tl.float32)
    for start in range(0, num_classes, BLOCK_V):
        place = logits + row * row_stride + (start + block) * column_stride
        largest = tl.maximum(largest, tl.load(place, mask=start + block < num_classes, other=float("-inf")))
    largest = tl.max(largest, 0).to(tl.float64)

    # Newton's steps rise from A = 0 to the solution and never pass it: see `reference.entmax`.
    partition = tl.full((), 0.0, tl.float64)
    step = tl.full((), 1.0, tl.float64)
    total = tl.full((), 1.0, tl.float64)
    while step > TOLERANCE * (1 + partition):
        total = tl.full((), 0.0, tl.float64)
        slopes = tl.full((), 0.0, tl.float64)
        for start in range(0, num_classes, BLOCK_V):
            place = logits + row * row_stride + (start + block) * column_stride
            x = tl.load(place, mask=start + block < num_classes, other=float("-inf"))
            base = _base(x, largest, partition, a)
            if tl.max(base, 0) > 0:
                if SHARED_ORDER == 1.0:
                    probability, slope = base, (base > 0).to(tl.float64)
                elif SHARED_ORDER == 0.5:
                    probability, slope = base * base, base
                else:
                    probability = tl.exp(tl.log(base) / a)
                    slope = tl.where(base > 0, probability / base, 0.0)
                total += tl.sum(probability, 0)
                slopes += tl.sum(slope, 0)
        # (1 - total^-a) / a, by its series where that would cancel.
        log_total = tl.log(total)
        z = a * log_total
        series = log_total * (1 - z / 2 * (1 - z / 3 * (1 - z / 4 * (1 - z / 5))))
        step = total * tl.where(z < 0.01, series, (1 - tl.exp(-z)) / a) / slopes
        if step > TOLERANCE * (1 + partition):
            partition += step

    log_total = tl.log(total)
    for start in range(0, num_classes, BLOCK_V):
        inside = start + block < num_classes
        place = logits + row * row_stride + (start + block) * column_stride
        x = tl.load(place, mask=inside, other=float("-inf"))
        base = _base(x, largest, partition, a)
        # Dividing by the sum takes away what the rounding of A leaves.
        if LOG:
            result = tl.log(base) / a - log_total
        elif SHARED_ORDER == 1.0:
            result = base / total
        elif SHARED_ORDER == 0.5:
            result = base * base / total
        else:
            result = tl.exp(tl.log(base) / a) / total
        tl.store(found + row * num_classes + start + block, result.to(tl.float32), mask=inside)
