"""Optimizer steps of some rows, in place: each row of weight and state is in the cache while it is updated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vastmax.kernels.numba.compiling import inlined, kernel
from vastmax.kernels.numba.gather import add_row, array, rows_worth
from vastmax.kernels.numba.threads import in_parts
from vastmax.kernels.reference import row_updates as reference
from vastmax.kernels.reference.row_updates import Runs, sgd_powers

_NO_POWERS = np.empty((0, 2, 2))


def adagrad_rows(
    weight: Tensor,
    total: Tensor,
    rows: Tensor,
    table: Tensor,
    runs: Runs | None = None,
    *,
    lr: float,
    eps: float,
    uniform: None = None,
) -> None:
    """See `reference.adagrad_rows`."""
    if not _contiguous(weight, total):
        reference.adagrad_rows(weight, total, rows, table, runs, lr=lr, eps=eps)
        return
    arrays = (_by_row(weight), _by_row(total), *_gradient(weight, rows, table, runs))
    scalars = _scalars(weight, lr, eps)
    in_parts(_adagrad_rows, len(rows), *arrays, scalars, at_least=rows_worth(4 * arrays[0].shape[1]))


def adamw_rows(
    weight: Tensor,
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor,
    last_step: Tensor,
    rows: Tensor,
    table: Tensor,
    runs: Runs | None = None,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    uniform: None = None,
) -> None:
    """See `reference.adamw_rows`."""
    if not _contiguous(weight, exp_avg, exp_avg_sq, last_step):
        options = {"step": step, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        reference.adamw_rows(weight, exp_avg, exp_avg_sq, last_step, rows, table, runs, **options)  # type: ignore[arg-type]
        return
    state = (_by_row(weight), _by_row_or_nothing(exp_avg, weight), _by_row(exp_avg_sq), array(last_step))
    scalars = (float(step), lr, *betas, eps, 1 - lr * weight_decay)
    gradient = _gradient(weight, rows, table, runs)
    in_parts(_adamw_rows, len(rows), *state, *gradient, scalars, at_least=rows_worth(8 * state[0].shape[1]))


def sgd_rows(
    weight: Tensor,
    momentum_buffer: Tensor | None,
    last_step: Tensor | None,
    rows: Tensor,
    table: Tensor,
    runs: Runs | None = None,
    *,
    step: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    uniform: None = None,
) -> None:
    """See `reference.sgd_rows`."""
    if not _contiguous(weight, momentum_buffer, last_step):
        options = {"step": step, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        reference.sgd_rows(weight, momentum_buffer, last_step, rows, table, runs, **options)  # type: ignore[arg-type]
        return
    counter = np.empty(0, np.int32) if last_step is None else array(last_step)
    state = (_by_row(weight), _by_row_or_nothing(momentum_buffer, weight), counter)
    powers = _NO_POWERS if last_step is None else sgd_powers(lr, momentum, weight_decay, nesterov=nesterov).numpy()
    scalars = _scalars(weight, lr, momentum, weight_decay, *((1.0, momentum) if nesterov else (0.0, 1.0)))
    gradient = _gradient(weight, rows, table, runs)
    at_least = rows_worth(4 * state[0].shape[1])
    in_parts(_sgd_rows, len(rows), *state, *gradient, powers, step, scalars, at_least=at_least)


def _contiguous(*tensors: Tensor | None) -> bool:
    """Return whether all can be updated where they lie; torch's operators take the others."""
    return all(tensor is None or tensor.is_contiguous() for tensor in tensors)


def _by_row(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a contiguous tensor's own memory as (V, elements of a row)."""
    return array(tensor).reshape(tensor.shape[0], math.prod(tensor.shape[1:]))


def _by_row_or_nothing(tensor: Tensor | None, weight: Tensor) -> np.ndarray[Any, Any]:
    """As `_by_row`; rows of no elements, by which a kernel tells, if there is no such state."""
    return np.empty((weight.shape[0], 0), array(weight).dtype) if tensor is None else _by_row(tensor)


def _gradient(weight: Tensor, rows: Tensor, table: Tensor, runs: Runs | None) -> tuple[np.ndarray[Any, Any], ...]:
    """Return rows, table, ids, starts and coefficients, the last three empty if the table is the gradient."""
    nothing = rows.new_empty(0)
    ids, starts, coefficient = (nothing, nothing, table.new_empty(0)) if runs is None else runs
    table = table.reshape(table.shape[0], math.prod(weight.shape[1:]))
    return tuple(array(tensor) for tensor in (rows, table, ids, starts, coefficient))


def _scalars(weight: Tensor, *values: float) -> tuple[Any, ...]:
    """Return numbers of the weight's dtype: those of float64 would make the loops compute in it."""
    return tuple(torch.tensor(values, dtype=weight.dtype).numpy())


@inlined
def _row_gradient(s: Any, table: Any, ids: Any, starts: Any, coefficient: Any, buffer: Any) -> Any:
    """Return the gradient of the s-th row: a row of the table, or the sum over its run, in `buffer`."""
    if len(starts) == 0:
        return table[s]
    end = starts[s + 1] if s + 1 < len(starts) else len(ids)
    add_row(coefficient[starts[s] : end], table, ids[starts[s] : end], buffer)
    return buffer


@inlined
def _mean_square(g: Any) -> Any:
    total = g.dtype.type(0)
    for j in range(len(g)):
        total += g[j] * g[j]
    return total / len(g)


@kernel
def _adagrad_rows(
    weight: Any,
    total: Any,
    rows: Any,
    table: Any,
    ids: Any,
    starts: Any,
    coefficient: Any,
    scalars: Any,
    start: int,
    stop: int,
) -> None:
    lr, eps = scalars
    buffer = np.empty(weight.shape[1], weight.dtype)
    for s in range(start, stop):
        if rows[s] < 0:  # a place of no row
            continue
        w, a = weight[rows[s]], total[rows[s]]
        g = _row_gradient(s, table, ids, starts, coefficient, buffer)
        if len(a) == len(w):
            for j in range(len(w)):
                a[j] += g[j] * g[j]
                w[j] -= lr * g[j] / (math.sqrt(a[j]) + eps)
        else:
            a[0] += _mean_square(g)
            rate = lr / (math.sqrt(a[0]) + eps)
            for j in range(len(w)):
                w[j] -= rate * g[j]


@kernel
def _adamw_rows(
    weight: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    last_step: Any,
    rows: Any,
    table: Any,
    ids: Any,
    starts: Any,
    coefficient: Any,
    scalars: Any,
    start: int,
    stop: int,
) -> None:
    step, lr, beta1, beta2, eps, decay = scalars
    real = weight.dtype.type
    b1, b2, of_g, of_square = real(beta1), real(beta2), real(1 - beta1), real(1 - beta2)
    tiny, kept = real(eps), real(decay)
    rate, correction = real(lr / (1 - beta1 ** (step + 1))), real(1 / (1 - beta2 ** (step + 1)))
    ratio = beta1 / math.sqrt(beta2) if beta2 > 0 else 0.0
    buffer = np.empty(weight.shape[1], weight.dtype)
    for s in range(start, stop):
        row = rows[s]
        if row < 0:
            continue
        w, m, v = weight[row], exp_avg[row], exp_avg_sq[row]
        missed = step - last_step[row]
        if missed > 0:
            first = step - missed + 1
            terms = missed if ratio == 1 else ratio * (1 - ratio**missed) / (1 - ratio)
            distance = real(lr * terms / (1 - beta1**first))
            _catch_up(w, m, v, distance, real(1 / (1 - beta2**first)), tiny, real(decay**missed))
            _scale(m, real(beta1**missed))
            _scale(v, real(beta2**missed))
        last_step[row] = step + 1

        g = _row_gradient(s, table, ids, starts, coefficient, buffer)
        for j in range(len(m)):
            m[j] = b1 * m[j] + of_g * g[j]
        along = m if len(m) == len(w) else g
        if len(v) == len(w):
            for j in range(len(w)):
                v[j] = b2 * v[j] + of_square * g[j] * g[j]
                w[j] = kept * w[j] - rate * along[j] / (math.sqrt(v[j] * correction) + tiny)
        else:
            v[0] = b2 * v[0] + of_square * _mean_square(g)
            along_rate = rate / (math.sqrt(v[0] * correction) + tiny)
            for j in range(len(w)):
                w[j] = kept * w[j] - along_rate * along[j]


@inlined
def _catch_up(w: Any, m: Any, v: Any, distance: Any, correction: Any, eps: Any, kept: Any) -> None:
    """Decay a row's weight and move it by momentum, for all the steps that it missed."""
    if len(m) == 0:
        _scale(w, kept)
    elif len(v) == len(w):
        for j in range(len(w)):
            w[j] = kept * w[j] - distance * m[j] / (math.sqrt(v[j] * correction) + eps)
    else:
        along = distance / (math.sqrt(v[0] * correction) + eps)
        for j in range(len(w)):
            w[j] = kept * w[j] - along * m[j]


@inlined
def _scale(values: Any, factor: Any) -> None:
    for j in range(len(values)):
        values[j] *= factor


@kernel
def _sgd_rows(
    weight: Any,
    momentum_buffer: Any,
    last_step: Any,
    rows: Any,
    table: Any,
    ids: Any,
    starts: Any,
    coefficient: Any,
    powers: Any,
    step: int,
    scalars: Any,
    start: int,
    stop: int,
) -> None:
    lr, momentum, weight_decay, direct, carried = scalars
    real = weight.dtype.type
    buffer = np.empty(weight.shape[1], weight.dtype)
    for s in range(start, stop):
        row = rows[s]
        if row < 0:
            continue
        w, b = weight[row], momentum_buffer[row]
        ww, wb, bw, bb = 1.0, 0.0, 0.0, 1.0
        if len(last_step) > 0:
            missed = step - last_step[row]
            bit = 0
            while missed > 0:
                if missed & 1:
                    p = powers[bit]
                    ww, wb = ww * p[0, 0] + wb * p[1, 0], ww * p[0, 1] + wb * p[1, 1]
                    bw, bb = bw * p[0, 0] + bb * p[1, 0], bw * p[0, 1] + bb * p[1, 1]
                missed >>= 1
                bit += 1
            last_step[row] = step + 1
        w_of_w, w_of_b, b_of_w, b_of_b = real(ww), real(wb), real(bw), real(bb)
        g = _row_gradient(s, table, ids, starts, coefficient, buffer)
        if len(b) == len(w):
            for j in range(len(w)):
                x, y = w_of_w * w[j] + w_of_b * b[j], b_of_w * w[j] + b_of_b * b[j]
                grad = g[j] + weight_decay * x
                y = momentum * y + grad
                b[j] = y
                w[j] = x - lr * (direct * grad + carried * y)
        else:
            for j in range(len(w)):
                x = w_of_w * w[j]
                w[j] = x - lr * (g[j] + weight_decay * x)
