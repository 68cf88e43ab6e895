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
    would lack the second derivative of the loss in silence.
    """

    @functools.wraps(backward)
    def call(ctx: Any, *upstream: Tensor) -> Any:
        with torch.no_grad():
            found = backward(ctx, *upstream)
        if not torch.is_grad_enabled():
            return found
        gradients = found if isinstance(found, tuple) else (found,)
        raising: Any = torch._C._functions.DelayedError(
            b"trying to differentiate twice a function that is once_differentiable: its gradient is computed block "
            b"by block or by a kernel, and has no derivative",
            len(gradients),
        )
        return raising(*(None if g is None else g.detach().requires_grad_() for g in gradients))

    return call


def saved_tensors_have_hooks() -> bool:
    """Whether tensors saved for backward are packed, as by a checkpoint, which unpacks by a second forward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def graph_of_its_own() -> AbstractContextManager[object]:
    """Where a graph is made within a forward that differentiates it at once: without a second forward for that."""
    if not saved_tensors_have_hooks():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved)
