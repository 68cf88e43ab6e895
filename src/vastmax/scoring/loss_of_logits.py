"""Any loss of a row's logits, applied to every class of a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.arithmetic import without_autocast
from vastmax.compilation import Coded, uncompiled
from vastmax.fused import Fused, Shapes, differentiable_by, keep, kept
from vastmax.scoring.class_gradients import arithmetic
from vastmax.scoring.every_class import check_linear
from vastmax.scoring.logit_parts import LogitRows, class_blocks, logit_blocks
from vastmax.scoring.products import multiplications, products
from vastmax.validation import shown

LossOfLogits = Callable[..., Tensor]
"""`loss(logits (n, V), *rows (n, ...), *shared) -> (n,)`: each row's loss, of that row's logits alone."""


class _BlockedLoss(Fused):
    """Losses of rows, part by part; the gradient scores the rows again and differentiates the loss of each part."""

    arguments = "str loss, int num_rows, Tensor hidden, Tensor weight, Tensor? bias, Tensor[] arguments"

    @staticmethod
    def shapes(_: list[int], __: LossOfLogits, num_rows: int, hidden: Tensor, weight: Tensor, *___: Any) -> Shapes:
        return [hidden.new_empty(hidden.shape[0], dtype=arithmetic(hidden, weight))], []

    @staticmethod
    def plain(
        loss: LossOfLogits,
        num_rows: int,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *arguments: Tensor,
    ) -> Tensor:
        dtype = arithmetic(hidden, weight)
        bias = None if bias is None else bias.to(dtype)
        with without_autocast(hidden.device):
            return loss(functional.linear(hidden.to(dtype), weight.to(dtype), bias), *arguments)

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
        keep(ctx, (loss, num_rows, hidden, weight, bias, *arguments))
        found = hidden.new_zeros(0, dtype=arithmetic(hidden, weight))
        with products(None, hidden.device, count=multiplications(hidden, weight)):
            for block in logit_blocks(hidden, weight, bias):
                for rows, logits in block.parts():
                    value = loss(logits, *(x[rows] for x in arguments[:num_rows]), *arguments[num_rows:])
                    if rows.start == 0:
                        found = value.new_empty(len(hidden))
                    found[rows] = value
        return found

    @staticmethod
    @differentiable_by(plain)
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (loss, num_rows, *tensors), _ = kept(ctx)
        hidden, weight, bias, *arguments = tensors
        dtype = arithmetic(hidden, weight)
        grad_hidden, grad_weight, grad_bias, *grad_arguments = gradients = [
            torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, dtype), device=x.device) if wanted else None
            for x, wanted in zip(tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        with products(None, hidden.device, count=multiplications(hidden, weight)):
            for block in logit_blocks(hidden, weight, bias):
                for part in block.parts():
                    _to_slopes(loss, num_rows, part, arguments, grad_arguments, upstream)
                rows, slopes, _ = block
                if grad_hidden is not None:
                    for classes in class_blocks(weight, dtype):
                        grad_hidden[rows].addmm_(slopes[:, classes], weight[classes].to(dtype))
                if grad_weight is not None:
                    grad_weight.addmm_(slopes.t(), hidden[rows].to(dtype))
                if grad_bias is not None:
                    grad_bias += slopes.sum(0)
        return (
            None,
            None,
            *(
                None if gradient is None else gradient.to(x.dtype)
                for gradient, x in zip(gradients, tensors, strict=True)
            ),
        )


def _to_slopes(
    loss: LossOfLogits,
    num_rows: int,
    part: LogitRows,
    arguments: list[Tensor],
    gradients: list[Tensor | None],
    upstream: Tensor,
) -> None:
    """Turn the logits of a part into the gradient with respect to them, in place; add to those of `arguments`."""
    rows, logits = part
    local = [
        (x[rows] if i < num_rows else x).detach().requires_grad_(gradient is not None)
        for i, (x, gradient) in enumerate(zip(arguments, gradients, strict=True))
    ]
    leaves = [logits.detach().requires_grad_(), *(x for x in local if x.requires_grad)]
    with torch.enable_grad():
        value = loss(leaves[0], *local)
    slope, *rest = torch.autograd.grad(value, leaves, upstream[rows], materialize_grads=True)
    logits.copy_(slope)
    for i, gradient in enumerate(gradients):
        if gradient is not None:
            gradient[rows if i < num_rows else ...] += rest.pop(0)


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

    The rows are scored a block at a time, into a buffer that is used again for the next, and their loss is taken a
    few rows at a time; the gradient scores them again and asks autograd for the gradient of the loss of those rows.
    The process takes no more memory for more rows. What needs only the log-partition and the target's logit is
    cheaper by `linear_cross_entropy` or `linear_log_partition`, which cut the classes too.

    Args:
        loss: `loss(logits (n, V), *rows (n, ...), *shared) -> (n,)`, plain operations on tensors; each row's loss
            depends on that row alone. Logits come in at least float32, and are gone after the call.
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
    function = _BlockedLoss.call
    if torch.compiler.is_compiling() and not isinstance(loss, Coded):  # of which no operator has a name
        function = _uncompiled_loss if torch.compiler.is_dynamo_compiling() else _BlockedLoss.plain
    found: Tensor = function(loss, len(rows), input, linear_weight, linear_bias, *rows, *shared)
    return found


_uncompiled_loss = uncompiled(_BlockedLoss.call)
