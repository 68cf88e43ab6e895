"""Losses of each row's logits of some classes: every class row is read once."""

# ruff: noqa: N803  (constants of a compilation have names in capitals, as in all of Triton)
from __future__ import annotations

import torch
from torch import Tensor
from triton import language as tl  # type: ignore[import-untyped]

from vastmax.kernels.reference.chosen_losses import RowLosses
from vastmax.kernels.triton.compiling import (
    LOWEST,
    cross_entropy,
    kernel,
    launch,
    pointer,
    softplus_and_sigmoid,
)
from vastmax.kernels.triton.gather import load_rows, tile_of_rows


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
    launch(
        _logistic_rows,
        len(ids),
        hidden.contiguous(),
        weight,
        pointer(bias, weight),
        ids.contiguous(),
        positive.contiguous(),
        offset.contiguous(),
        share.contiguous(),
        *found,
        scale,
        ids.shape[1],
        weight.shape[1],
        *weight.stride(),
        0 if bias is None else bias.stride(0),
        HAS_BIAS=bias is not None,
        **tile_of_rows(weight.shape[1], ids.shape[1]),
    )
    return found


def softmax_rows(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, offset: Tensor, scale: float
) -> RowLosses:
    """See `reference.softmax_rows`."""
    found = _empty(hidden, ids)
    launch(
        _softmax_rows,
        len(ids),
        hidden.contiguous(),
        weight,
        pointer(bias, weight),
        ids.contiguous(),
        offset.contiguous(),
        *found,
        scale,
        ids.shape[1],
        weight.shape[1],
        *weight.stride(),
        0 if bias is None else bias.stride(0),
        HAS_BIAS=bias is not None,
        **tile_of_rows(weight.shape[1], ids.shape[1]),
    )
    return found


def _empty(hidden: Tensor, ids: Tensor) -> RowLosses:
    return RowLosses(
        hidden.new_empty(len(ids)),
        hidden.new_empty(ids.shape),
        torch.empty_like(hidden, memory_format=torch.contiguous_format),
    )


@kernel
def _logistic_rows(
    hidden: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    ids: tl.tensor,
    positive: tl.tensor,
    offset: tl.tensor,
    share: tl.tensor,
    loss: tl.tensor,
    slope: tl.tensor,
    grad_hidden: tl.tensor,
    scale: tl.tensor,
    num_ids: tl.tensor,
    size: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    bias_stride: tl.tensor,
    HAS_BIAS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    h = tl.load(hidden + row * size + columns, mask=columns < size, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_K,), tl.float32)
    grad = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for start in range(0, num_ids, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        inside = j < num_ids
        place = row * num_ids + j
        own = tl.load(ids + place, mask=inside, other=0)
        w = load_rows(weight, own, inside, size, row_stride, column_stride, BLOCK_D)
        score = tl.sum(w * h[None, :], 1)
        if HAS_BIAS:
            score += tl.load(bias + own * bias_stride, mask=inside, other=0.0).to(tl.float32)
        x = scale * score - tl.load(offset + place, mask=inside, other=0.0).to(tl.float32)
        is_positive = tl.load(positive + place, mask=inside, other=0) != 0
        v = tl.load(share + place, mask=inside, other=0.0).to(tl.float32)
        softplus, sigmoid = softplus_and_sigmoid(tl.where(is_positive, -x, x))
        # A class without a share counts for nothing, be its logit infinite.
        total += tl.where(v == 0, 0.0, v * softplus)
        g = tl.where(v == 0, 0.0, scale * v * tl.where(is_positive, -sigmoid, sigmoid))
        tl.store(slope + place, g, mask=inside)
        grad += g[:, None] * w
    tl.store(loss + row, tl.sum(total, 0))
    tl.store(grad_hidden + row * size + columns, tl.sum(grad, 0), mask=columns < size)


@kernel
def _softmax_rows(
    hidden: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    ids: tl.tensor,
    offset: tl.tensor,
    loss: tl.tensor,
    slope: tl.tensor,
    grad_hidden: tl.tensor,
    scale: tl.tensor,
    num_ids: tl.tensor,
    size: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    bias_stride: tl.tensor,
    HAS_BIAS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    h = tl.load(hidden + row * size + columns, mask=columns < size, other=0.0).to(tl.float32)
    # Logits are taken less the first class's score, so that an offset of all of them costs no digit; sums, over the
    # classes beside the first, relative to e^shift, which rises with the largest logit seen.
    base = tl.zeros((), tl.float32)
    shift = tl.full((), LOWEST, tl.float32)
    others = tl.zeros((), tl.float32)
    mean = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    target = tl.zeros((), tl.float32)
    for start in range(0, num_ids, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        inside = j < num_ids
        place = row * num_ids + j
        own = tl.load(ids + place, mask=inside, other=0)
        w = load_rows(weight, own, inside, size, row_stride, column_stride, BLOCK_D)
        score = tl.sum(w * h[None, :], 1)
        if HAS_BIAS:
            score += tl.load(bias + own * bias_stride, mask=inside, other=0.0).to(tl.float32)
        own_score = tl.sum(tl.where(j == 0, score, 0.0), 0)
        base += tl.where(own_score == float("-inf"), 0.0, own_score)
        x = scale * (score - base) - tl.load(offset + place, mask=inside, other=float("inf")).to(tl.float32)
        # The logits wait where their slopes will be, for the sum of all.
        tl.store(slope + place, x, mask=inside)
        target += tl.sum(tl.where(j == 0, x, 0.0), 0)
        risen = tl.maximum(shift, tl.max(x, 0))
        e = tl.where(j == 0, 0.0, tl.exp(x - risen))
        shrink = tl.exp(shift - risen)
        others = others * shrink + tl.sum(e, 0)
        mean = mean * shrink + e[:, None] * w
        shift = risen
    partition = others + tl.exp(target - shift)
    tl.store(loss + row, cross_entropy(others, partition, shift - target))
    # 1 - p of the first class is what the others have, which does not cancel where p is near 1.
    first = tl.load(ids + row * num_ids)
    offsets = first.to(tl.int64) * row_stride + columns.to(tl.int64) * column_stride
    w = tl.load(weight + offsets, mask=columns < size, other=0.0).to(tl.float32)
    grad = scale * (tl.sum(mean, 0) - others * w) / partition
    tl.store(grad_hidden + row * size + columns, grad, mask=columns < size)
    tl.debug_barrier()  # what other threads of the program stored is read now
    for start in range(0, num_ids, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        place = slope + row * num_ids + j
        e = tl.exp(tl.load(place, mask=j < num_ids, other=0.0) - shift)
        tl.store(place, scale * tl.where(j == 0, -others, e) / partition, mask=j < num_ids)
