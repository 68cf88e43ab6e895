"""Any loss of a row's logits, applied to every class of a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vastmax.compilation import uncompiled
from vastmax.differentiation import once_differentiable
from vastmax.scoring import blocks
from vastmax.scoring.every_class import check_linear
from vastmax.validation import shown

LossOfLogits = Callable[..., Tensor]
"""`loss(logits (n, V), *rows (n, ...), *shared) -> (n,)`: each row's loss, of that row's logits alone."""

COPIES = 4
"""Tensors the size of the logits that a loss and its gradient may hold at a time, beside the logits."""


class _BlockedLoss(torch.autograd.Function):
    """Losses of rows, block by block; the gradient scores each block again and differentiates the loss there."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: LossOfLogits,
        num_rows: int,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *arguments: Tensor,
    ) -> Tensor:
        ctx.loss, ctx.num_rows = loss, num_rows
        ctx.save_for_backward(hidden, weight, bias, *arguments)
        with torch.autocast(hidden.device.type, enabled=False):
            found = [
                loss(
                    _logits(hidden[rows], weight, bias),
                    *(x[rows] for x in arguments[:num_rows]),
                    *arguments[num_rows:],
                )
                for rows in _row_blocks(hidden, weight)
            ]
        return torch.cat(found) if found else hidden.new_zeros(0, dtype=_dtype(hidden, weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        hidden, weight, bias, *arguments = tensors
        dtype = _dtype(hidden, weight)
        grad_hidden, grad_weight, grad_bias, *grad_arguments = gradients = [
            torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, dtype), device=x.device) if wanted else None
            for x, wanted in zip(tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        for rows in _row_blocks(hidden, weight):
            with torch.autocast(hidden.device.type, enabled=False):
                logits = _logits(hidden[rows], weight, bias).requires_grad_()
                local = [
                    (x[rows] if i < ctx.num_rows else x).detach().requires_grad_(gradient is not None)
                    for i, (x, gradient) in enumerate(zip(arguments, grad_arguments, strict=True))
                ]
                wanted = [x for x in local if x.requires_grad]
                with torch.enable_grad():
                    value = ctx.loss(logits, *local)
                found = torch.autograd.grad(value, [logits, *wanted], upstream[rows], allow_unused=True)
                grad_logits, remaining = found[0], iter(found[1:])
                if grad_hidden is not None:
                    for classes in _class_blocks(weight, dtype):
                        grad_hidden[rows].addmm_(grad_logits[:, classes], weight[classes].to(dtype))
                if grad_weight is not None:
                    grad_weight.addmm_(grad_logits.t(), hidden[rows].to(dtype))
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
                for i, gradient in enumerate(grad_arguments):
                    if gradient is not None and (part := next(remaining)) is not None:
                        gradient[rows if i < ctx.num_rows else ...] += part
        return (
            None,
            None,
            *(
                None if gradient is None else gradient.to(x.dtype)
                for gradient, x in zip(gradients, tensors, strict=True)
            ),
        )


def _dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: that of the inputs, and at least float32."""
    return torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = _dtype(hidden, weight)
    hidden = hidden.to(dtype)
    logits = hidden.new_empty(hidden.shape[0], weight.shape[0])
    for classes in _class_blocks(weight, dtype):
        torch.mm(hidden, weight[classes].to(dtype).t(), out=logits[:, classes])
    return logits if bias is None else logits.add_(bias.to(dtype))


def _class_blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """All classes at once, or so few that their rows, converted to another dtype, are one block of memory."""
    num_classes, width = weight.shape
    step = num_classes if weight.dtype == dtype else max(1, blocks.BLOCK_ELEMENTS // max(width, 1))
    for start in range(0, num_classes, step):
        yield slice(start, min(start + step, num_classes))


def _row_blocks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Slices of rows whose logits, with what their loss makes of them, stay within a few blocks of memory."""
    num_rows = hidden.shape[0]
    step = max(1, blocks.BLOCK_ELEMENTS // (COPIES * weight.shape[0]))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


@uncompiled
def linear_loss(
    loss: LossOfLogits,
    input: Tensor,
    linear_weight: Tensor,
    *,
    linear_bias: Tensor | None = None,
    rows: Sequence[Tensor] = (),
    shared: Sequence[Tensor] = (),
) -> Tensor:
    r"""Return any loss of each row's logits, without all of them at once.

    $$\ell_r = f(s_{r1}, \dots, s_{rV};\, a_r, b), \qquad s_{rc} = h_r \cdot w_c + b_c$$

    The rows are scored and their loss is taken a few at a time; the gradient scores them again and asks autograd
    for the gradient of the loss in that block. What needs only the log-partition and the target's logit is
    cheaper by `linear_cross_entropy` or `linear_log_partition`, which cut the classes too.

    Args:
        loss: `loss(logits (n, V), *rows (n, ...), *shared) -> (n,)`, plain operations on tensors; each row's loss
            depends on that row alone. Logits come in at least float32.
        input: (N, d) hidden rows.
        linear_weight: (V, d) class rows.
        linear_bias: (V,) or None.
        rows: tensors (N, ...) that are cut as the logits are, such as targets.
        shared: tensors that every block gets whole, such as a learned parameter of the loss.

    Returns:
        (N,) losses, differentiable with respect to every floating-point tensor given, once.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit.

    Example:
        >>> hidden, weight, target = torch.randn(4, 8), torch.randn(100, 8), torch.tensor([1, 2, 3, 99])
        >>> def hinge(logits, target):
        ...     return (1 + logits - logits.gather(-1, target[:, None])).clamp(min=0).sum(-1)
        >>> linear_loss(hinge, hidden, weight, rows=(target,)).shape
        torch.Size([4])
    """
    if not callable(loss):
        raise TypeError(
            f"loss: expected a function of logits (n, V), got {shown(loss)} of type {type(loss).__name__}"
        )
    check_linear(input, linear_weight, linear_bias)
    if input.ndim != 2:
        raise ValueError(f"input: expected shape (N, {linear_weight.shape[1]}), got {tuple(input.shape)}")
    for tensor in rows:
        if tensor.shape[:1] != input.shape[:1]:
            raise ValueError(f"rows: expected tensors of {len(input)} rows, got shape {tuple(tensor.shape)}")
    found: Tensor = _BlockedLoss.apply(  # type: ignore[no-untyped-call]
        loss, len(rows), input, linear_weight, linear_bias, *rows, *shared
    )
    return found
