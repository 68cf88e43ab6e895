r"""Optimizer steps of some rows, in place: their weight and state are read once and written once.

All of them take a weight (V, ...), its state, the distinct `rows` (S,) to update, and the gradient of these rows.
That is `table` (S, ...) itself or, with `runs = (ids, starts, coefficient)`, the sums
`gather_sum(table, ids, starts, coefficient)` over a `table` (M, d), which nobody has to keep. Table, coefficients
and state have the dtype of the arithmetic: float32 for weights of half precision, whose new values are rounded to
the nearest or, with `uniform`, stochastically.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vastmax.checking import at_hand
from vastmax.kernels.reference.gather import gather_sum
from vastmax.kernels.reference.rounding import stochastic_round

Runs = tuple[Tensor, Tensor, Tensor]


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
    r"""Take Adagrad's step $G \leftarrow G + g^2$, $w \leftarrow w - \eta\, g / (\sqrt G + \epsilon)$.

    Args:
        weight: (V, ...).
        total: $G$, in the shape of `weight`, or (V, 1, ...) for the mean of $g^2$ over each row.
        rows: (S,) int64, distinct; with `runs` -1 in places of no row.
        table: (S, ...) the gradient of these rows, or with `runs` the table (M, d) whose sums it is.
        runs: ids (L,), starts (S,) and coefficients (L,) of `gather_sum`, or None.
        lr: $\eta$.
        eps: $\epsilon$.
        uniform: (S, ...) draws from [0, 1), to round weights of half precision stochastically.
    """
    rows, grad = _gradient(weight, rows, table, runs)
    new, sums = weight.index_select(0, rows).to(grad.dtype), total.index_select(0, rows)
    sums.add_(_squares(grad, sums))
    new.addcmul_(grad, lr / (sums.sqrt() + eps), value=-1)
    total.index_copy_(0, rows, sums)
    _write(weight, rows, new, uniform)


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
    r"""Make up for the steps that each row missed, as AdamW with zero gradients, and take AdamW's step.

    With $n$ steps missed since the last, $s$-th one of a row,

    $$w \leftarrow (1 - \eta\lambda)^n w
      - \eta\, \frac{m / (1 - \beta_1^{s+1})}{\sqrt{v / (1 - \beta_2^{s+1})} + \epsilon}
      \sum_{j=1}^{n} \big(\beta_1 / \sqrt{\beta_2}\big)^j, \qquad
      m \leftarrow \beta_1^n m, \quad v \leftarrow \beta_2^n v.$$

    Args:
        weight: (V, ...).
        exp_avg: $m$, in the shape of `weight`; None if $\beta_1 = 0$, where it is the gradient.
        exp_avg_sq: $v$, in the shape of `weight`, or (V, 1, ...) for that of the mean of $g^2$ over each row.
        last_step: (V,) the number of each row's last step.
        rows: (S,) int64, distinct; with `runs` -1 in places of no row.
        table: (S, ...) the gradient of these rows, or with `runs` the table (M, d) whose sums it is.
        runs: ids (L,), starts (S,) and coefficients (L,) of `gather_sum`, or None.
        step: the number of steps before this one.
        lr: $\eta$.
        betas: $\beta_1, \beta_2$.
        eps: $\epsilon$.
        weight_decay: $\lambda$.
        uniform: (S, ...) draws from [0, 1), to round weights of half precision stochastically.
    """
    (beta1, beta2), decay = betas, 1 - lr * weight_decay
    rows, grad = _gradient(weight, rows, table, runs)
    new, square = weight.index_select(0, rows).to(grad.dtype), exp_avg_sq.index_select(0, rows)
    # In float64: 0.999 rounded to float32 and raised to a thousand steps is off in the fifth digit.
    missed = (step - last_step.index_select(0, rows)).double().view(-1, *(1,) * (weight.ndim - 1))

    new.mul_((decay**missed).to(new.dtype))
    if exp_avg is None:
        mean = grad
    else:
        mean = exp_avg.index_select(0, rows)
        first = step - missed + 1
        ratio = beta1 / beta2**0.5 if beta2 > 0 else 0.0
        distance = lr * _geometric_sum(ratio, missed) / (1 - beta1**first)
        root = square.div((1 - beta2**first).to(square.dtype)).sqrt_().add_(eps)
        new.addcdiv_(mean * distance.to(new.dtype), root, value=-1)
        mean.mul_((beta1**missed).to(mean.dtype)).lerp_(grad, 1 - beta1)
        exp_avg.index_copy_(0, rows, mean)
    square.mul_((beta2**missed).to(square.dtype)).lerp_(_squares(grad, square), 1 - beta2)
    exp_avg_sq.index_copy_(0, rows, square)
    last_step.index_fill_(0, rows, step + 1)

    root = square.div(1 - beta2 ** (step + 1)).sqrt_().add_(eps)
    new.mul_(decay).addcdiv_(mean, root, value=-lr / (1 - beta1 ** (step + 1)))
    _write(weight, rows, new, uniform)


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
    r"""Make up for the steps that each row missed, as SGD with zero gradients, and take SGD's step.

    A step with zero gradient is linear in weight and momentum buffer: see `sgd_powers`.

    Args:
        weight: (V, ...).
        momentum_buffer: $b$, in the shape of `weight`; None if $\mu = 0$, where it is the gradient.
        last_step: (V,) the number of each row's last step; None if steps of zero gradient change nothing.
        rows: (S,) int64, distinct; with `runs` -1 in places of no row.
        table: (S, ...) the gradient of these rows, or with `runs` the table (M, d) whose sums it is.
        runs: ids (L,), starts (S,) and coefficients (L,) of `gather_sum`, or None.
        step: the number of steps before this one.
        lr: $\eta$.
        momentum: $\mu$.
        weight_decay: $\lambda$, coupled: it is part of the gradient.
        nesterov: step by $g + \mu b$ instead of $b$.
        uniform: (S, ...) draws from [0, 1), to round weights of half precision stochastically.
    """
    rows, grad = _gradient(weight, rows, table, runs)
    new = weight.index_select(0, rows).to(grad.dtype)
    buffer = torch.zeros_like(new) if momentum_buffer is None else momentum_buffer.index_select(0, rows)
    if last_step is not None:
        powers = sgd_powers(lr, momentum, weight_decay, nesterov=nesterov).to(weight.device, non_blocking=True)
        missed = _matrix_power(powers, step - last_step.index_select(0, rows), step.bit_length())
        ww, wb, bw, bb = missed.to(new.dtype).view(-1, 4, *(1,) * (weight.ndim - 1)).unbind(1)
        new, buffer = ww * new + wb * buffer, bw * new + bb * buffer
        last_step.index_fill_(0, rows, step + 1)
    grad = grad.add(new, alpha=weight_decay)
    buffer.mul_(momentum).add_(grad)
    new.sub_(grad.add(buffer, alpha=momentum) if nesterov else buffer, alpha=lr)
    if momentum_buffer is not None:
        momentum_buffer.index_copy_(0, rows, buffer)
    _write(weight, rows, new, uniform)


def sgd_powers(lr: float, momentum: float, weight_decay: float, *, nesterov: bool) -> Tensor:
    r"""Return $A^{2^0}, A^{2^1}, \ldots, A^{2^{30}}$ (31, 2, 2) in float64: any $A^n$ is a product of some of them.

    $A$ takes $(w, b)$ through a step of SGD with zero gradient, $b' = \mu b + \lambda w$ and $w' = w - \eta b'$ or,
    after Nesterov, $w' = w - \eta (\lambda w + \mu b')$.
    """
    direct, carried = (1.0, momentum) if nesterov else (0.0, 1.0)
    to_weight = [1 - lr * weight_decay * (direct + carried), -lr * carried * momentum]
    powers = np.empty((31, 2, 2))
    powers[0] = to_weight, [weight_decay, momentum]
    with np.errstate(over="ignore", invalid="ignore"):  # a step that diverges has no such powers, nor uses them
        for k in range(30):
            np.matmul(powers[k], powers[k], out=powers[k + 1])
    return torch.from_numpy(powers)


def _matrix_power(powers: Tensor, exponent: Tensor, bits: int) -> Tensor:
    """Return $A^n$ (n, 2, 2) for exponents (n,) of so many bits, from `sgd_powers`."""
    result = torch.eye(2, dtype=powers.dtype, device=powers.device).expand(len(exponent), 2, 2)
    for bit, power in enumerate(powers[:bits]):
        result = torch.where((exponent >> bit & 1).bool().view(-1, 1, 1), result @ power, result)
    return result


def _gradient(weight: Tensor, rows: Tensor, table: Tensor, runs: Runs | None) -> tuple[Tensor, Tensor]:
    """Return the rows and the gradient of each; places of no row repeat the first one, and so its step."""
    grad = table if runs is None else gather_sum(table, *runs)
    grad = grad.reshape(len(rows), *weight.shape[1:])
    if runs is None or at_hand(rows):
        return rows, grad
    none = (rows < 0).view(-1, *(1,) * (grad.ndim - 1))
    return torch.where(rows < 0, rows[:1], rows), torch.where(none, grad[:1], grad)


def _squares(grad: Tensor, state: Tensor) -> Tensor:
    """Return the squared gradient, averaged over the row where the state has one number for it."""
    square = grad.square()
    return square if state.shape == grad.shape else square.mean(dim=tuple(range(1, grad.ndim)), keepdim=True)


def _geometric_sum(ratio: float, terms: Tensor) -> Tensor:
    """Return ratio + ratio^2 + ... of so many terms."""
    return terms if ratio == 1 else ratio * (1 - ratio**terms) / (1 - ratio)


def _write(weight: Tensor, rows: Tensor, new: Tensor, uniform: Tensor | None) -> None:
    new = new.to(weight.dtype) if uniform is None else stochastic_round(new, weight.dtype, uniform)
    weight.index_copy_(0, rows, new)
