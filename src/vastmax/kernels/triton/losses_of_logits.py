"""Losses of logits that are there already, and are overwritten by their slopes."""

# ruff: noqa: N803  (constants of a compilation have names in capitals, as in all of Triton)
from __future__ import annotations

from torch import Tensor
from triton import language as tl  # type: ignore[import-untyped]

from vastmax.kernels.triton.compiling import (
    LOWEST,
    cross_entropy,
    kernel,
    launch,
    next_power_of_2,
    softplus_and_sigmoid,
)

LOGITS_AT_A_TIME = 1 << 11
"""Logits of a row that a program holds at a time."""


def logistic_logits_(logits: Tensor, offset: Tensor, scale: float) -> Tensor:
    """See `reference.logistic_logits_`."""
    loss = logits.new_empty(len(logits))
    launch(
        _logistic_logits,
        len(logits),
        logits,
        offset,
        loss,
        scale,
        logits.shape[1],
        *logits.stride(),
        *offset.expand(logits.shape).stride(),
        BLOCK_K=_block(logits),
    )
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
    loss, slope = (logits.new_empty(len(logits)) for _ in range(2))
    launch(
        _softmax_logits,
        len(logits),
        target_logit.contiguous(),
        logits,
        target_offset.contiguous(),
        offset,
        ids.contiguous(),
        left_out.contiguous(),
        loss,
        slope,
        scale,
        logits.shape[1],
        *logits.stride(),
        *offset.expand(logits.shape).stride(),
        BLOCK_K=_block(logits),
    )
    return loss, slope


def _block(logits: Tensor) -> int:
    block: int = next_power_of_2(min(max(logits.shape[1], 1), LOGITS_AT_A_TIME))
    return block


@kernel
def _logistic_logits(
    logits: tl.tensor,
    offset: tl.tensor,
    loss: tl.tensor,
    scale: tl.tensor,
    num_ids: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    offset_row_stride: tl.tensor,
    offset_column_stride: tl.tensor,
    BLOCK_K: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, num_ids, BLOCK_K):
        j = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        inside = j < num_ids
        place = logits + row * row_stride + j * column_stride
        o = tl.load(offset + row * offset_row_stride + j * offset_column_stride, mask=inside, other=float("inf"))
        x = scale * tl.load(place, mask=inside, other=0.0) - o
        softplus, sigmoid = softplus_and_sigmoid(x)
        total += softplus
        tl.store(place, scale * sigmoid, mask=inside)
    tl.store(loss + row, tl.sum(total, 0))


@kernel
def _softmax_logits(
    target_logit: tl.tensor,
    logits: tl.tensor,
    target_offset: tl.tensor,
    offset: tl.tensor,
    ids: tl.tensor,
    left_out: tl.tensor,
    loss: tl.tensor,
    slope: tl.tensor,
    scale: tl.tensor,
    num_ids: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    offset_row_stride: tl.tensor,
    offset_column_stride: tl.tensor,
    BLOCK_K: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    without = tl.load(left_out + row)
    # Logits are taken less the target's, so that an offset of all of them costs no digit.
    own = tl.load(target_logit + row)
    base = tl.where(own == float("-inf"), 0.0, own)
    target = scale * (own - base) - tl.load(target_offset + row)
    shift = tl.zeros((BLOCK_K,), tl.float32) + tl.maximum(target, LOWEST)
    others = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, num_ids, BLOCK_K):
        j = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        inside = j < num_ids
        place = logits + row * row_stride + j * column_stride
        o = tl.load(offset + row * offset_row_stride + j * offset_column_stride, mask=inside, other=float("inf"))
        x = scale * (tl.load(place, mask=inside, other=0.0) - base) - o
        x = tl.where(tl.load(ids + j, mask=inside, other=-1) == without, float("-inf"), x)
        tl.store(place, x, mask=inside)
        risen = tl.maximum(shift, x)
        others = others * tl.exp(shift - risen) + tl.exp(x - risen)
        shift = risen
    largest = tl.max(shift, 0)
    rest = tl.sum(others * tl.exp(shift - largest), 0)
    partition = rest + tl.exp(target - largest)
    tl.store(loss + row, cross_entropy(rest, partition, largest - target))
    tl.store(slope + row, -scale * rest / partition)
    tl.debug_barrier()  # what other threads of the program stored is read now
    for start in range(0, num_ids, BLOCK_K):
        j = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        place = logits + row * row_stride + j * column_stride
        e = tl.exp(tl.load(place, mask=j < num_ids, other=0.0) - largest)
        tl.store(place, scale * e / partition, mask=j < num_ids)
