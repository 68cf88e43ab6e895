"""Gradients that have no derivative of their own, and graphs that end where they begin."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Have autograd raise RuntimeError when what a custom function's backward pass returns is differentiated.

    Torch's decorator of this name does so only where the gradient that comes in is differentiable. That of a loss
    which is backpropagated as it is, 1, is not: the gradient would then pass for a constant, and a penalty on it
    would lack the second derivative of the loss in silence. The refusal reaches those inputs of the function that
    it saves for its backward pass: it has to save all that may want a gradient.
    """

    @functools.wraps(backward)
    def call(ctx: Any, *upstream: Tensor) -> Any:
        with torch.no_grad():
            found = backward(ctx, *upstream)
        if not torch.is_grad_enabled():
            return found
        sources = [x for x in (*upstream, *ctx.saved_tensors) if x is not None and x.requires_grad]
        if not sources:
            return found
        gradients = found if isinstance(found, tuple) else (found,)
        made = [g for g in gradients if g is not None]
        refusing = iter(_WithoutDerivative.apply(len(made), *made, *sources))  # type: ignore[no-untyped-call]
        return tuple(None if g is None else next(refusing) for g in gradients)

    return call


class _WithoutDerivative(torch.autograd.Function):
    """Gradients that depend on all that they are made of, and refuse to be differentiated by any of it.

    If they were constants, torch would take their derivative for 0, as `torch.autograd.functional.hvp` does.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.detach() for gradient in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> None:
        raise RuntimeError(
            "trying to differentiate twice a function that is once_differentiable: its gradient is computed block "
            "by block or by a kernel, and has no derivative"
        )


def saved_tensors_have_hooks() -> bool:
    """Whether tensors saved for backward are packed, as by a checkpoint, which unpacks by a second forward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def graph_of_its_own() -> AbstractContextManager[object]:
    """Where a graph is made within a forward that differentiates it at once: without a second forward for that."""
    if not saved_tensors_have_hooks():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved)
