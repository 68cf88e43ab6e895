"""Class rows read where they lie: products with them, and sums of them."""

# ruff: noqa: N803  (constants of a compilation have names in capitals, as in all of Triton)
from __future__ import annotations

from torch import Tensor
from triton import language as tl  # type: ignore[import-untyped]

from vastmax.kernels.triton.compiling import cdiv, kernel, launch, next_power_of_2

TILE_ELEMENTS = 1 << 12
"""Elements of the class rows that a program holds at a time, if not one row alone has more."""

LONG_RUN = 8
"""Mean length from which runs are summed in tall tiles."""


def gather_dot(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """See `reference.gather_dot`."""
    logits = hidden.new_empty(ids.shape)
    tile = tile_of_rows(weight.shape[1], ids.shape[1])
    launch(
        _gather_dot,
        len(ids) * cdiv(ids.shape[1], tile["BLOCK_K"]),
        hidden.contiguous(),
        weight,
        ids.contiguous(),
        logits,
        ids.shape[1],
        weight.shape[1],
        *weight.stride(),
        **tile,
    )
    return logits


def gather_sum(table: Tensor, ids: Tensor, starts: Tensor, coefficient: Tensor) -> Tensor:
    """See `reference.gather_sum`."""
    sums = coefficient.new_empty(len(starts), table.shape[1])
    launch(
        _gather_sum,
        len(starts),
        table,
        ids.contiguous(),
        starts.contiguous(),
        coefficient.contiguous(),
        sums,
        len(ids),
        len(starts),
        table.shape[1],
        *table.stride(),
        **tile_of_runs(table.shape[1], len(ids), len(starts)),
    )
    return sums


def tile_of_rows(size: int, count: int) -> dict[str, int]:
    """Return the constants of a kernel that holds some of `count` rows of `size` elements at a time, each whole."""
    width = next_power_of_2(size)
    height = min(next_power_of_2(max(count, 1)), max(1, TILE_ELEMENTS // width))
    warps = min(max(height * width // 1024, 1), 16)
    return {"BLOCK_K": height, "BLOCK_D": width, "num_warps": warps}


def tile_of_runs(size: int, num_ids: int, num_runs: int) -> dict[str, int]:
    """Return the constants of a kernel that sums runs of rows of `size` elements."""
    return tile_of_rows(size, 32 if num_ids >= LONG_RUN * num_runs else 4)


@kernel
def load_rows(
    table: tl.tensor,
    ids: tl.tensor,
    inside: tl.tensor,
    size: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """Return rows of a table in float32, zeros where `inside` is false: (BLOCK_K, BLOCK_D)."""
    columns = tl.arange(0, BLOCK_D).to(tl.int64)
    offsets = ids.to(tl.int64)[:, None] * row_stride + columns[None, :] * column_stride
    return tl.load(table + offsets, mask=inside[:, None] & (columns < size)[None, :], other=0.0).to(tl.float32)


@kernel
def sum_of_run(
    table: tl.tensor,
    ids: tl.tensor,
    starts: tl.tensor,
    coefficient: tl.tensor,
    run: tl.tensor,
    num_ids: tl.tensor,
    num_runs: tl.tensor,
    size: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """Return one of the sums of `gather_sum` in float32: (BLOCK_D,)."""
    first = tl.load(starts + run)
    end = tl.load(starts + run + 1, mask=run + 1 < num_runs, other=num_ids)
    total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for start in range(first, end, BLOCK_K):
        i = start + tl.arange(0, BLOCK_K)
        own = tl.load(ids + i, mask=i < end, other=0)
        t = load_rows(table, own, i < end, size, row_stride, column_stride, BLOCK_D)
        x = tl.load(coefficient + i, mask=i < end, other=0.0).to(tl.float32)
        total += x[:, None] * t
    return tl.sum(total, 0)


@kernel
def _gather_dot(
    hidden: tl.tensor,
    weight: tl.tensor,
    ids: tl.tensor,
    logits: tl.tensor,
    num_ids: tl.tensor,
    size: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    blocks = tl.cdiv(num_ids, BLOCK_K)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    columns = tl.arange(0, BLOCK_D)
    h = tl.load(hidden + row * size + columns, mask=columns < size, other=0.0).to(tl.float32)
    own = tl.load(ids + row * num_ids + j, mask=j < num_ids, other=0)
    w = load_rows(weight, own, j < num_ids, size, row_stride, column_stride, BLOCK_D)
    tl.store(logits + row * num_ids + j, tl.sum(w * h[None, :], 1), mask=j < num_ids)


@kernel
def _gather_sum(
    table: tl.tensor,
    ids: tl.tensor,
    starts: tl.tensor,
    coefficient: tl.tensor,
    sums: tl.tensor,
    num_ids: tl.tensor,
    num_runs: tl.tensor,
    size: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    run = tl.program_id(0).to(tl.int64)
    total = sum_of_run(
        table, ids, starts, coefficient, run, num_ids, num_runs, size, row_stride, column_stride, BLOCK_K, BLOCK_D
    )
    columns = tl.arange(0, BLOCK_D)
    tl.store(sums + run * size + columns, total, mask=columns < size)
