"""Every class: scores are made tile by tile, and are gone when their tile is done.

On the way back one block of the gradient with respect to the logits is kept,
in half precision where the inputs are bfloat16: scored again once, it serves the gradients of hidden and of weight,
which are matrix products. Nothing is added atomically, so results are the same from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vastmax.kernels.reference import BlockSums
from vastmax.kernels.triton.compiling import cdiv, launch, next_power_of_2, pointer, triton_dtype
from vastmax.kernels.triton.every_class_tiles import coefficient_tile, product_tile, split_partition_tile

PROGRAMS = 1024
"""Programs that fill a device: eight for each multiprocessor of a large one. One number, as sums depend on it."""

BLOCK_ROWS = 1 << 14
BLOCK_LOGITS = 1 << 25
"""Rows, and logits, whose gradient is kept at a time: 64 MB in bfloat16."""


@dataclass(frozen=True)
class Tiles:
    """How matrix products of some inputs are cut.

    Args:
        rows: of a tile.
        classes: of a tile.
        depth: terms of a product at a time.
        inputs: the dtype that both factors of a score are converted to.
        coefficients: the dtype of the gradient with respect to the logits, as a factor.
        precision: that of the products.
        warps: of a program.
    """

    rows: int
    classes: int
    depth: int
    inputs: torch.dtype
    coefficients: torch.dtype
    precision: str
    warps: int

    @staticmethod
    def of(hidden: Tensor, weight: Tensor) -> Tiles:
        """Choose the tiles for rows and class rows."""
        inputs = torch.promote_types(hidden.dtype, weight.dtype)
        rows = min(max(next_power_of_2(len(hidden)), 16), 128)
        if inputs == torch.bfloat16:
            return Tiles(rows, 128, 64, inputs, torch.bfloat16, "ieee", 8)
        if inputs == torch.float16:
            # Small gradients underflow in float16, whose own numbers are exact in TF32.
            return Tiles(rows, 128, 32, inputs, torch.float32, "tf32", 8)
        if torch.get_float32_matmul_precision() == "highest":
            return Tiles(min(rows, 64), 64, 32, inputs, torch.float32, "ieee", 4)
        return Tiles(rows, 128, 32, inputs, torch.float32, "tf32", 8)

    def scoring(self) -> dict[str, Any]:
        """Return the constants of a kernel that scores."""
        return {
            "DTYPE": triton_dtype(self.inputs),
            "PRECISION": self.precision,
            "BLOCK_N": self.rows,
            "BLOCK_V": self.classes,
            "BLOCK_D": self.depth,
            "num_warps": self.warps,
            "num_stages": 3,
        }


def split_partition(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, softcap: float | None = None
) -> tuple[Tensor, BlockSums]:
    """See `reference.split_partition`."""
    (num_rows, size), num_classes = hidden.shape, len(weight)
    tiles = Tiles.of(hidden, weight)
    row_tiles = cdiv(num_rows, tiles.rows)
    classes, splits = _split(num_classes, tiles.classes, row_tiles)
    target_logit = hidden.new_zeros(num_rows, dtype=torch.float32)
    maxima, masses = hidden.new_empty(2, splits, num_rows, dtype=torch.float32)
    launch(
        split_partition_tile,
        row_tiles * splits,
        hidden,
        weight,
        pointer(bias, weight),
        target.contiguous(),
        target_logit,
        maxima,
        masses,
        num_rows,
        num_classes,
        size,
        classes,
        *hidden.stride(),
        *weight.stride(),
        0 if bias is None else bias.stride(0),
        1.0 if softcap is None else softcap,
        HAS_BIAS=bias is not None,
        HAS_SOFTCAP=softcap is not None,
        **tiles.scoring(),
    )
    maximum = maxima.amax(0)
    return target_logit, BlockSums(maximum, (masses * (maxima - maximum).exp()).sum(0))


def split_partition_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    maximum: Tensor,
    log_mass: Tensor,
    grad_others: Tensor,
    grad_target: Tensor,
    *,
    wanted: tuple[bool, bool, bool] = (True, True, True),
    softcap: float | None = None,
    filter_eps: float | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """See `reference.split_partition_backward`."""
    tiles = Tiles.of(hidden, weight)
    grads = [
        # Without rows nothing is written.
        (torch.empty if len(hidden) else torch.zeros)(tensor.shape, dtype=torch.float32, device=hidden.device)
        if want and tensor is not None
        else None
        for want, tensor in zip(wanted, (hidden, weight, bias), strict=True)
    ]
    grad_hidden, grad_weight, grad_bias = grads
    per_row = (target, maximum, log_mass, grad_others, grad_target)
    for rows, classes in _blocks(len(hidden), len(weight), tiles):
        h, w = hidden[rows], weight[classes]
        own_bias = None if bias is None else bias[classes]
        own = tuple(values[rows].contiguous() for values in per_row)
        coefficient, kept, column_sums = _coefficients(
            h, w, own_bias, own, classes.start, tiles, softcap, filter_eps
        )
        if grad_hidden is not None:
            _add_product(grad_hidden[rows], coefficient, w, kept, tiles, accumulate=classes.start > 0)
        if grad_weight is not None:
            turned = None if kept is None else kept.t()
            _add_product(grad_weight[classes], coefficient.t(), h, turned, tiles, accumulate=rows.start > 0)
        if grad_bias is not None:
            sums = column_sums.sum(0)
            grad_bias[classes] = sums if rows.start == 0 else grad_bias[classes] + sums
    return grad_hidden, grad_weight, grad_bias


def _split(length: int, tile: int, others: int) -> tuple[int, int]:
    """Return the length of the parts, whole tiles, that a loop is cut into to fill the device, and their number."""
    parts = min(max(PROGRAMS // max(others, 1), 1), cdiv(length, tile))
    part = cdiv(cdiv(length, tile), parts) * tile
    return part, cdiv(length, part)


def _blocks(num_rows: int, num_classes: int, tiles: Tiles) -> Iterator[tuple[slice, slice]]:
    rows = max(1, min(num_rows, BLOCK_ROWS))
    classes = max(1, BLOCK_LOGITS // (rows * tiles.classes)) * tiles.classes
    for row in range(0, num_rows, rows):
        for first in range(0, num_classes, classes):
            yield slice(row, min(row + rows, num_rows)), slice(first, min(first + classes, num_classes))


def _coefficients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    per_row: tuple[Tensor, ...],
    first_class: int,
    tiles: Tiles,
    softcap: float | None,
    filter_eps: float | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the gradient of the scores of a block, which tiles of it are kept, and its sums over tiles of rows."""
    (num_rows, size), num_classes = hidden.shape, len(weight)
    row_tiles, class_tiles = cdiv(num_rows, tiles.rows), cdiv(num_classes, tiles.classes)
    coefficient = hidden.new_empty(num_rows, num_classes, dtype=tiles.coefficients)
    kept = None if filter_eps is None else hidden.new_empty(row_tiles, class_tiles, dtype=torch.int32)
    column_sums = hidden.new_empty(row_tiles, 0 if bias is None else num_classes, dtype=torch.float32)
    launch(
        coefficient_tile,
        row_tiles * class_tiles,
        hidden,
        weight,
        pointer(bias, weight),
        *per_row,
        coefficient,
        pointer(kept, weight),
        column_sums,
        first_class,
        num_rows,
        num_classes,
        size,
        *hidden.stride(),
        *weight.stride(),
        0 if bias is None else bias.stride(0),
        1.0 if softcap is None else softcap,
        0.0 if filter_eps is None else filter_eps,
        HAS_BIAS=bias is not None,
        HAS_SOFTCAP=softcap is not None,
        FILTERS=filter_eps is not None,
        **tiles.scoring(),
    )
    return coefficient, kept, column_sums


def _add_product(
    total: Tensor, coefficient: Tensor, table: Tensor, kept: Tensor | None, tiles: Tiles, *, accumulate: bool
) -> None:
    """Make `total` coefficient @ table, or add that to it, without the tiles of `coefficient` that are not kept."""
    (num_rows, terms), size = coefficient.shape, table.shape[1]
    turned = coefficient.stride(0) == 1 and coefficient.stride(1) != 1
    height, tile_terms = (tiles.classes, tiles.rows) if turned else (tiles.rows, tiles.classes)
    width = min(max(next_power_of_2(size), 16), tiles.classes)
    programs = cdiv(num_rows, height) * cdiv(size, width)
    part, splits = _split(terms, tile_terms, programs)
    parts = total.unsqueeze(0) if splits == 1 else total.new_empty(splits, *total.shape)
    launch(
        product_tile,
        programs * splits,
        coefficient,
        table,
        pointer(kept, coefficient),
        parts,
        num_rows,
        size,
        terms,
        part,
        *coefficient.stride(),
        *table.stride(),
        *((0, 0) if kept is None else kept.stride()),
        PRECISION=tiles.precision,
        FILTERS=kept is not None,
        ACCUMULATE=accumulate and splits == 1,
        BLOCK_M=height,
        BLOCK_W=width,
        TILE_TERMS=tile_terms,
        BLOCK_TERMS=min(tiles.depth, tile_terms),
        num_warps=tiles.warps,
        num_stages=3,
    )
    if splits > 1:
        total.copy_(parts.sum(0) + total if accumulate else parts.sum(0))
