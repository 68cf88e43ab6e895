"""What a program does with its row in an optimizer's step.

Powers of a row's own number of missed steps are those of numbers near 1, so they are made in float64.
"""

# ruff: noqa: N803  (constants of a compilation have names in capitals, as in all of Triton)
from __future__ import annotations

from triton import language as tl  # type: ignore[import-untyped]

from vastmax.kernels.triton.compiling import kernel, to_nearest
from vastmax.kernels.triton.gather import sum_of_run


@kernel
def _gradient(
    table: tl.tensor,
    ids: tl.tensor,
    starts: tl.tensor,
    coefficient: tl.tensor,
    program: tl.tensor,
    num_ids: tl.tensor,
    num_rows: tl.tensor,
    size: tl.tensor,
    table_row: tl.tensor,
    table_column: tl.tensor,
    HAS_RUNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    if HAS_RUNS:
        grad = sum_of_run(
            table,
            ids,
            starts,
            coefficient,
            program,
            num_ids,
            num_rows,
            size,
            table_row,
            table_column,
            BLOCK_K,
            BLOCK_D,
        )
    else:
        columns = tl.arange(0, BLOCK_D).to(tl.int64)
        place = table + program * table_row + columns * table_column
        grad = tl.load(place, mask=columns < size, other=0.0).to(tl.float32)
    return grad


@kernel
def _store_rounded(
    place: tl.tensor,
    new: tl.tensor,
    uniform: tl.tensor,
    inside: tl.tensor,
    STOCHASTIC: tl.constexpr,
) -> None:
    if STOCHASTIC:
        # As `reference.rounding` does: the bits, as an integer, count the magnitude in steps to the next number.
        half = place.dtype.element_ty
        magnitude = tl.abs(new)
        nearest = to_nearest(new, half)
        bits = nearest.to(tl.int16, bitcast=True) - (tl.abs(nearest.to(tl.float32)) > magnitude).to(tl.int16)
        lower = tl.abs(bits.to(half, bitcast=True).to(tl.float32))
        upper = tl.abs((bits + 1).to(tl.int16).to(half, bitcast=True).to(tl.float32))
        u = tl.load(uniform, mask=inside, other=0.0)
        up = u < (magnitude - lower) / (upper - lower)
        rounded = (bits + up.to(tl.int16)).to(tl.int16).to(half, bitcast=True)
        tl.store(place, rounded, mask=inside)
    else:
        tl.store(place, to_nearest(new, place.dtype.element_ty), mask=inside)


@kernel
def _float64(number: tl.tensor) -> tl.tensor:
    """Return an argument that the interpreter knows as a number of Python's."""
    return tl.full((), number, tl.float64)


@kernel
def _power(base: tl.tensor, exponent: tl.tensor) -> tl.tensor:
    """Return the power of a float64 number by squaring."""
    result = base * 0 + 1
    while exponent > 0:
        result = tl.where(exponent % 2 == 1, result * base, result)
        base = base * base
        exponent = exponent // 2
    return result


@kernel
def adagrad_row(
    weight: tl.tensor,
    total: tl.tensor,
    rows: tl.tensor,
    table: tl.tensor,
    ids: tl.tensor,
    starts: tl.tensor,
    coefficient: tl.tensor,
    uniform: tl.tensor,
    num_ids: tl.tensor,
    num_rows: tl.tensor,
    size: tl.tensor,
    table_row: tl.tensor,
    table_column: tl.tensor,
    weight_row: tl.tensor,
    weight_column: tl.tensor,
    total_row: tl.tensor,
    total_column: tl.tensor,
    lr: tl.tensor,
    eps: tl.tensor,
    PER_ROW: tl.constexpr,
    HAS_RUNS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Take Adagrad's step."""
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + program).to(tl.int64)
    if row < 0:  # a place of no row
        return
    columns = tl.arange(0, BLOCK_D).to(tl.int64)
    inside = columns < size
    w_place = weight + row * weight_row + columns * weight_column
    grad = _gradient(
        table, ids, starts, coefficient, program, num_ids, num_rows, size, table_row, table_column,
        HAS_RUNS, BLOCK_K, BLOCK_D,
    )  # fmt: skip
    if PER_ROW:
        sums = tl.load(total + row * total_row) + tl.sum(grad * grad, 0) / size
        tl.store(total + row * total_row, sums)
    else:
        t_place = total + row * total_row + columns * total_column
        sums = tl.load(t_place, mask=inside, other=0.0) + grad * grad
        tl.store(t_place, sums, mask=inside)
    new = tl.load(w_place, mask=inside, other=0.0).to(tl.float32) - grad * (lr / (tl.sqrt_rn(sums) + eps))
    _store_rounded(w_place, new, uniform + program * size + columns, inside, STOCHASTIC)


@kernel
def adamw_row(
    weight: tl.tensor,
    exp_avg: tl.tensor,
    exp_avg_sq: tl.tensor,
    last_step: tl.tensor,
    rows: tl.tensor,
    table: tl.tensor,
    ids: tl.tensor,
    starts: tl.tensor,
    coefficient: tl.tensor,
    uniform: tl.tensor,
    num_ids: tl.tensor,
    num_rows: tl.tensor,
    size: tl.tensor,
    table_row: tl.tensor,
    table_column: tl.tensor,
    weight_row: tl.tensor,
    weight_column: tl.tensor,
    mean_row: tl.tensor,
    mean_column: tl.tensor,
    square_row: tl.tensor,
    square_column: tl.tensor,
    last_step_stride: tl.tensor,
    step: tl.tensor,
    lr: tl.float64,
    beta1: tl.float64,
    beta2: tl.float64,
    ratio: tl.float64,
    eps: tl.float32,
    decay: tl.float64,
    step_size: tl.float32,
    correction2: tl.float32,
    HAS_MEAN: tl.constexpr,
    PER_ROW: tl.constexpr,
    HAS_RUNS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Make up for the steps a row missed and take AdamW's step; `ratio` is beta1 / sqrt(beta2)."""
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + program).to(tl.int64)
    if row < 0:  # a place of no row
        return
    columns = tl.arange(0, BLOCK_D).to(tl.int64)
    inside = columns < size
    w_place = weight + row * weight_row + columns * weight_column
    grad = _gradient(
        table, ids, starts, coefficient, program, num_ids, num_rows, size, table_row, table_column,
        HAS_RUNS, BLOCK_K, BLOCK_D,
    )  # fmt: skip
    lr, beta1, beta2 = _float64(lr), _float64(beta1), _float64(beta2)
    ratio, decay = _float64(ratio), _float64(decay)
    last = tl.load(last_step + row * last_step_stride).to(tl.int64)
    missed = step - last
    tl.store(last_step + row * last_step_stride, last + missed + 1)

    if PER_ROW:
        s_place = exp_avg_sq + row * square_row
        square, grad_square = tl.load(s_place), tl.sum(grad * grad, 0) / size
    else:
        s_place = exp_avg_sq + row * square_row + columns * square_column
        square, grad_square = tl.load(s_place, mask=inside, other=0.0), grad * grad
    new = tl.load(w_place, mask=inside, other=0.0).to(tl.float32) * _power(decay, missed).to(tl.float32)
    mean = grad
    if HAS_MEAN:
        m_place = exp_avg + row * mean_row + columns * mean_column
        mean = tl.load(m_place, mask=inside, other=0.0)
        geometric = tl.where(ratio == 1, missed.to(tl.float64), ratio * (1 - _power(ratio, missed)) / (1 - ratio))
        distance = lr * geometric / (1 - _power(beta1, last + 1))
        root = tl.sqrt_rn(square / (1 - _power(beta2, last + 1)).to(tl.float32)) + eps
        new -= mean * distance.to(tl.float32) / root
        mean = _power(beta1, missed + 1).to(tl.float32) * mean + (1 - beta1).to(tl.float32) * grad
        tl.store(m_place, mean, mask=inside)
    square = _power(beta2, missed + 1).to(tl.float32) * square + (1 - beta2).to(tl.float32) * grad_square
    if PER_ROW:
        tl.store(s_place, square)
    else:
        tl.store(s_place, square, mask=inside)
    new = new * decay.to(tl.float32) - step_size * mean / (tl.sqrt_rn(square / correction2) + eps)
    _store_rounded(w_place, new, uniform + program * size + columns, inside, STOCHASTIC)


@kernel
def sgd_row(
    weight: tl.tensor,
    momentum_buffer: tl.tensor,
    last_step: tl.tensor,
    rows: tl.tensor,
    table: tl.tensor,
    ids: tl.tensor,
    starts: tl.tensor,
    coefficient: tl.tensor,
    uniform: tl.tensor,
    num_ids: tl.tensor,
    num_rows: tl.tensor,
    size: tl.tensor,
    table_row: tl.tensor,
    table_column: tl.tensor,
    weight_row: tl.tensor,
    weight_column: tl.tensor,
    buffer_row: tl.tensor,
    buffer_column: tl.tensor,
    last_step_stride: tl.tensor,
    step: tl.tensor,
    lr: tl.float32,
    momentum: tl.float32,
    weight_decay: tl.float32,
    ww: tl.float64,
    wb: tl.float64,
    bw: tl.float64,
    bb: tl.float64,
    HAS_BUFFER: tl.constexpr,
    HAS_LAST_STEP: tl.constexpr,
    NESTEROV: tl.constexpr,
    HAS_RUNS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Make up for the steps a row missed and take SGD's step; ww, wb, bw, bb is the matrix of `sgd_powers`."""
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + program).to(tl.int64)
    if row < 0:  # a place of no row
        return
    columns = tl.arange(0, BLOCK_D).to(tl.int64)
    inside = columns < size
    w_place = weight + row * weight_row + columns * weight_column
    grad = _gradient(
        table, ids, starts, coefficient, program, num_ids, num_rows, size, table_row, table_column,
        HAS_RUNS, BLOCK_K, BLOCK_D,
    )  # fmt: skip
    new = tl.load(w_place, mask=inside, other=0.0).to(tl.float32)
    buffer = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BUFFER:
        b_place = momentum_buffer + row * buffer_row + columns * buffer_column
        buffer = tl.load(b_place, mask=inside, other=0.0)
    if HAS_LAST_STEP:
        last = tl.load(last_step + row * last_step_stride).to(tl.int64)
        missed = step - last
        tl.store(last_step + row * last_step_stride, last + missed + 1)
        ww, wb, bw, bb = _float64(ww), _float64(wb), _float64(bw), _float64(bb)
        rww, rwb, rbw, rbb = ww * 0 + 1, ww * 0, ww * 0, ww * 0 + 1
        while missed > 0:
            odd = missed % 2 == 1
            rww, rwb, rbw, rbb = (
                tl.where(odd, rww * ww + rwb * bw, rww),
                tl.where(odd, rww * wb + rwb * bb, rwb),
                tl.where(odd, rbw * ww + rbb * bw, rbw),
                tl.where(odd, rbw * wb + rbb * bb, rbb),
            )
            ww, wb, bw, bb = ww * ww + wb * bw, ww * wb + wb * bb, bw * ww + bb * bw, bw * wb + bb * bb
            missed = missed // 2
        new, buffer = (
            rww.to(tl.float32) * new + rwb.to(tl.float32) * buffer,
            rbw.to(tl.float32) * new + rbb.to(tl.float32) * buffer,
        )
    grad += weight_decay * new
    buffer = momentum * buffer + grad
    new -= lr * (grad + momentum * buffer if NESTEROV else buffer)
    if HAS_BUFFER:
        tl.store(b_place, buffer, mask=inside)
    _store_rounded(w_place, new, uniform + program * size + columns, inside, STOCHASTIC)
