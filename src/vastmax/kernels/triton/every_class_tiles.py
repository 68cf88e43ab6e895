"""One tile of rows and classes at a time: what a program of the kernels of every class does."""

# ruff: noqa: N803  (constants of a compilation have names in capitals, as in all of Triton)
from __future__ import annotations

from triton import language as tl  # type: ignore[import-untyped]

from vastmax.kernels.triton.compiling import LOWEST, add_product, kernel, to_nearest


@kernel
def _logits(
    hidden: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    classes: tl.tensor,
    num_rows: tl.tensor,
    num_classes: tl.tensor,
    size: tl.tensor,
    hidden_row: tl.tensor,
    hidden_column: tl.tensor,
    weight_row: tl.tensor,
    weight_column: tl.tensor,
    bias_stride: tl.tensor,
    softcap: tl.tensor,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """Return the logits of a tile, -inf where its classes are none."""
    columns = tl.arange(0, BLOCK_D)
    h_place = hidden + rows[:, None] * hidden_row + columns.to(tl.int64)[None, :] * hidden_column
    w_place = weight + classes[None, :] * weight_row + columns.to(tl.int64)[:, None] * weight_column
    scores = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for start in range(0, size, BLOCK_D):
        inside = columns < size - start
        h = tl.load(h_place, mask=(rows < num_rows)[:, None] & inside[None, :], other=0.0).to(DTYPE)
        w = tl.load(w_place, mask=(classes < num_classes)[None, :] & inside[:, None], other=0.0).to(DTYPE)
        scores = add_product(h, w, scores, PRECISION)
        h_place += BLOCK_D * hidden_column
        w_place += BLOCK_D * weight_column
    if HAS_BIAS:
        scores += tl.load(bias + classes * bias_stride, mask=classes < num_classes, other=0.0).to(tl.float32)[
            None, :
        ]
    if HAS_SOFTCAP:
        # tanh, from an exponential that does not overflow.
        e = tl.exp(-2 * tl.abs(scores) / softcap)
        capped = softcap * (1 - e) / (1 + e)
        capped = tl.where(scores < 0, -capped, capped)
        scores = tl.where(scores == float("-inf"), scores, capped)
    return tl.where((classes < num_classes)[None, :], scores, float("-inf"))


@kernel
def split_partition_tile(
    hidden: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    target: tl.tensor,
    target_logit: tl.tensor,
    maximum: tl.tensor,
    mass: tl.tensor,
    num_rows: tl.tensor,
    num_classes: tl.tensor,
    size: tl.tensor,
    part: tl.tensor,
    hidden_row: tl.tensor,
    hidden_column: tl.tensor,
    weight_row: tl.tensor,
    weight_column: tl.tensor,
    bias_stride: tl.tensor,
    softcap: tl.tensor,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Go through the classes of one part, a tile at a time, for a tile of rows."""
    # Programs that run together read the same class rows.
    row_tiles = tl.cdiv(num_rows, BLOCK_N)
    split = (tl.program_id(0) // row_tiles).to(tl.int64)
    rows = (tl.program_id(0) % row_tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = split * part
    end = tl.minimum(first + part, num_classes)
    t = tl.load(target + rows, mask=rows < num_rows, other=-1)
    shift = tl.full((BLOCK_N,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    of_target = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(first, end, BLOCK_V):
        classes = start + tl.arange(0, BLOCK_V).to(tl.int64)
        s = _logits(
            hidden, weight, bias, rows, classes, num_rows, num_classes, size, hidden_row, hidden_column,
            weight_row, weight_column, bias_stride, softcap,
            HAS_BIAS, HAS_SOFTCAP, DTYPE, PRECISION, BLOCK_N, BLOCK_V, BLOCK_D,
        )  # fmt: skip
        is_target = classes[None, :] == t[:, None]
        of_target += tl.sum(tl.where(is_target, s, 0.0), 1)
        s = tl.where(is_target, float("-inf"), s)
        risen = tl.maximum(shift, tl.max(s, 1))
        total = total * tl.exp(shift - risen) + tl.sum(tl.exp(s - risen[:, None]), 1)
        shift = risen
    tl.store(maximum + split * num_rows + rows, shift, mask=rows < num_rows)
    tl.store(mass + split * num_rows + rows, total, mask=rows < num_rows)
    tl.store(target_logit + rows, of_target, mask=(rows < num_rows) & (t >= first) & (t < end))


@kernel
def coefficient_tile(
    hidden: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    target: tl.tensor,
    maximum: tl.tensor,
    log_mass: tl.tensor,
    grad_others: tl.tensor,
    grad_target: tl.tensor,
    coefficient: tl.tensor,
    kept: tl.tensor,
    column_sums: tl.tensor,
    first_class: tl.tensor,
    num_rows: tl.tensor,
    num_classes: tl.tensor,
    size: tl.tensor,
    hidden_row: tl.tensor,
    hidden_column: tl.tensor,
    weight_row: tl.tensor,
    weight_column: tl.tensor,
    bias_stride: tl.tensor,
    softcap: tl.tensor,
    filter_eps: tl.tensor,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    FILTERS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Make the gradient with respect to one tile of scores."""
    row_tiles, class_tiles = tl.cdiv(num_rows, BLOCK_N), tl.cdiv(num_classes, BLOCK_V)
    row_tile, class_tile = (tl.program_id(0) % row_tiles).to(tl.int64), (tl.program_id(0) // row_tiles).to(tl.int64)
    rows = row_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    classes = class_tile * BLOCK_V + tl.arange(0, BLOCK_V)
    s = _logits(
        hidden, weight, bias, rows, classes, num_rows, num_classes, size, hidden_row, hidden_column,
        weight_row, weight_column, bias_stride, softcap,
        HAS_BIAS, HAS_SOFTCAP, DTYPE, PRECISION, BLOCK_N, BLOCK_V, BLOCK_D,
    )  # fmt: skip
    inside = rows < num_rows
    shifted = s - tl.load(maximum + rows, mask=inside, other=float("inf")).to(tl.float32)[:, None]
    p = tl.exp(shifted - tl.load(log_mass + rows, mask=inside, other=0.0).to(tl.float32)[:, None])
    t = tl.load(target + rows, mask=inside, other=-1) - first_class
    is_target = classes[None, :] == t[:, None]
    u = tl.load(grad_others + rows, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(grad_target + rows, mask=inside, other=0.0).to(tl.float32)
    grad = tl.where(is_target, v[:, None], u[:, None] * p)
    if HAS_SOFTCAP:
        slope = 1 - (s / softcap) * (s / softcap)
        grad *= tl.where(s == float("-inf"), 0.0, slope)
    is_kept = True
    if FILTERS:
        # Written so that NaN is kept.
        is_kept = tl.max(tl.max((~(p < filter_eps) | is_target).to(tl.int32), 1), 0) > 0
        tl.store(kept + row_tile * class_tiles + class_tile, is_kept.to(tl.int32))
        grad = tl.where(is_kept, grad, 0.0)
    if HAS_BIAS:
        tl.store(column_sums + row_tile * num_classes + classes, tl.sum(grad, 0), mask=classes < num_classes)
    if is_kept:
        place = coefficient + rows[:, None] * num_classes + classes[None, :]
        tl.store(
            place,
            to_nearest(grad, coefficient.dtype.element_ty),
            mask=inside[:, None] & (classes < num_classes)[None, :],
        )


@kernel
def product_tile(
    coefficient: tl.tensor,
    table: tl.tensor,
    kept: tl.tensor,
    total: tl.tensor,
    num_rows: tl.tensor,
    size: tl.tensor,
    terms: tl.tensor,
    part: tl.tensor,
    coefficient_row: tl.tensor,
    coefficient_column: tl.tensor,
    table_row: tl.tensor,
    table_column: tl.tensor,
    kept_row: tl.tensor,
    kept_column: tl.tensor,
    PRECISION: tl.constexpr,
    FILTERS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_W: tl.constexpr,
    TILE_TERMS: tl.constexpr,
    BLOCK_TERMS: tl.constexpr,
) -> None:
    """Make, or add, one tile of coefficient @ table, of one part of the terms."""
    row_tiles, column_tiles = tl.cdiv(num_rows, BLOCK_M), tl.cdiv(size, BLOCK_W)
    # Programs that run together share their rows of coefficients, the larger factor.
    column_tile, rest = tl.program_id(0) % column_tiles, tl.program_id(0) // column_tiles
    row_tile, split = (rest % row_tiles).to(tl.int64), (rest // row_tiles).to(tl.int64)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_tile.to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    first = split * part
    end = tl.minimum(first + part, terms)
    sums = total + split * num_rows * size + rows[:, None] * size + columns[None, :]
    inside = (rows < num_rows)[:, None] & (columns < size)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_W), tl.float32)
    if ACCUMULATE:
        acc = tl.load(sums, mask=inside, other=0.0)
    for start in range(first, end, BLOCK_TERMS):
        wanted = True
        if FILTERS:
            wanted = tl.load(kept + row_tile * kept_row + (start // TILE_TERMS) * kept_column) > 0
        if wanted:
            k = start + tl.arange(0, BLOCK_TERMS).to(tl.int64)
            a_place = coefficient + rows[:, None] * coefficient_row + k[None, :] * coefficient_column
            a = tl.load(a_place, mask=(rows < num_rows)[:, None] & (k < end)[None, :], other=0.0)
            b_place = table + k[:, None] * table_row + columns[None, :] * table_column
            b = tl.load(b_place, mask=(k < end)[:, None] & (columns < size)[None, :], other=0.0)
            acc = add_product(a, b.to(a.dtype), acc, PRECISION)
    tl.store(sums, acc, mask=inside)
