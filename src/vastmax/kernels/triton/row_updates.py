"""Optimizer steps of some rows, in place: a program holds a row, its gradient and its state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vastmax.kernels.reference.row_updates import Runs, sgd_powers
from vastmax.kernels.triton.compiling import launch, pointer
from vastmax.kernels.triton.gather import tile_of_rows, tile_of_runs
from vastmax.kernels.triton.row_steps import adagrad_row, adamw_row, sgd_row


def adagrad_rows(
    weight: Tensor,
    total: Tensor,
    rows: Tensor,
    table: Tensor,
    runs: Runs | None = None,
    *,
    lr: float,
    eps: float,
    uniform: Tensor | None = None,
) -> None:
    """See `reference.adagrad_rows`."""
    weight, total = _matrix(weight), _matrix(total)
    launch(
        adagrad_row,
        len(rows),
        weight,
        total,
        *_gradient(weight, rows, table, runs, uniform),
        *weight.stride(),
        *total.stride(),
        lr,
        eps,
        PER_ROW=total.shape != weight.shape,
        **_constants(weight, rows, runs, uniform),
    )


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
    uniform: Tensor | None = None,
) -> None:
    """See `reference.adamw_rows`."""
    beta1, beta2 = betas
    weight, square = _matrix(weight), _matrix(exp_avg_sq)
    mean = None if exp_avg is None else _matrix(exp_avg)
    launch(
        adamw_row,
        len(rows),
        weight,
        pointer(mean, weight),
        square,
        last_step,
        *_gradient(weight, rows, table, runs, uniform),
        *weight.stride(),
        *pointer(mean, weight).stride(),
        *square.stride(),
        last_step.stride(0),
        step,
        lr,
        beta1,
        beta2,
        beta1 / beta2**0.5 if beta2 > 0 else 0.0,
        eps,
        1 - lr * weight_decay,
        lr / (1 - beta1 ** (step + 1)),
        1 - beta2 ** (step + 1),
        HAS_MEAN=mean is not None,
        PER_ROW=square.shape != weight.shape,
        **_constants(weight, rows, runs, uniform),
    )


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
    uniform: Tensor | None = None,
) -> None:
    """See `reference.sgd_rows`."""
    weight = _matrix(weight)
    buffer = None if momentum_buffer is None else _matrix(momentum_buffer)
    launch(
        sgd_row,
        len(rows),
        weight,
        pointer(buffer, weight),
        pointer(last_step, rows),
        *_gradient(weight, rows, table, runs, uniform),
        *weight.stride(),
        *pointer(buffer, weight).stride(),
        pointer(last_step, rows).stride(0),
        step,
        lr,
        momentum,
        weight_decay,
        *sgd_powers(lr, momentum, weight_decay, nesterov=nesterov)[0].flatten().tolist(),
        HAS_BUFFER=buffer is not None,
        HAS_LAST_STEP=last_step is not None,
        NESTEROV=nesterov,
        **_constants(weight, rows, runs, uniform),
    )


def _matrix(tensor: Tensor) -> Tensor:
    """Return a view (V, d) of rows of any shape."""
    return tensor.view(len(tensor), -1)


def _gradient(
    weight: Tensor, rows: Tensor, table: Tensor, runs: Runs | None, uniform: Tensor | None
) -> tuple[Any, ...]:
    """Return what every kernel takes: the rows, what their gradient is made of, the draws that round, and sizes."""
    ids, starts, coefficient = (rows, rows, rows) if runs is None else (part.contiguous() for part in runs)
    table = table.reshape(len(table), weight.shape[1])
    draws = weight if uniform is None else uniform.contiguous()
    return (
        rows.contiguous(),
        table,
        ids,
        starts,
        coefficient,
        draws,
        len(ids),
        len(rows),
        *weight.shape[1:],
        *table.stride(),
    )


def _constants(weight: Tensor, rows: Tensor, runs: Runs | None, uniform: Tensor | None) -> dict[str, Any]:
    size = weight.shape[1]
    tile = tile_of_rows(size, 1) if runs is None else tile_of_runs(size, len(runs[0]), len(rows))
    return {"HAS_RUNS": runs is not None, "STOCHASTIC": uniform is not None, **tile}
