"""Which derivatives torch asks for, what is a constant to them, and graphs that end at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad


def along(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Have forward mode differentiate in turn what a custom function's `jvp` computes of the tensors it saved.

    Torch calls `jvp` with forward mode off: the derivative of a derivative, both in forward mode, would be 0 in
    silence. With it on, what was saved must not have the direction that the rule is about to apply.

    Args:
        rule: `rule(ctx, saved, *directions)`.
    """

    @functools.wraps(rule)
    def jvp(ctx: Any, *directions: Tensor | None) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = (None if x is None else forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors)
            return rule(ctx, tuple(saved), *directions)

    return jvp


def takes_operators(*upstream: Tensor) -> bool:
    """Return whether a backward pass with this coming in has to be made of torch's operators.

    It is so if it is to be differentiated in turn, in either mode, or is one of many at a time.
    """
    batched = any(map(torch._C._functorch.is_legacy_batchedtensor, upstream))
    return torch.is_grad_enabled() or directions_are_taken() or transforms_are_active() or batched


def transforms_are_active() -> bool:
    """Return whether a transform of `torch.func` is at work, whose tensors have no memory for a kernel to read."""
    return torch._C._are_functorch_transforms_active()


def directions_are_taken() -> bool:
    """Return whether forward mode is at work, outside of `torch.func`; cheaper than to ask of each tensor."""
    return forward_ad._current_level >= 0


def has_direction(value: object) -> bool:
    """Return whether a value is a tensor whose derivative in one direction is taken along, in forward mode."""
    if not isinstance(value, Tensor):
        return False
    tangent = forward_ad.unpack_dual(value).tangent
    if tangent is not None and torch._C._functorch.is_legacy_batchedtensor(tangent):
        raise NotImplementedError(
            "torch.autograd.functional in forward mode: expected one direction at a time, got several by "
            "vectorize=True; torch.func.jacfwd and torch.func.hessian take several"
        )
    return tangent is not None


def is_batched(value: Tensor) -> bool:
    """Return whether a tensor stands for many at a time, as within `torch.func.vmap`; not asked while compiling."""
    if torch.compiler.is_compiling():
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        if torch._C._functorch.is_batchedtensor(value):
            return True
        value = torch._C._functorch.get_unwrapped(value)
    return torch._C._functorch.is_legacy_batchedtensor(value)


def check_not_batched(name: str, value: Tensor) -> None:
    """Raise NotImplementedError if a tensor whose values have to be looked at stands for many at a time."""
    if is_batched(value):
        raise NotImplementedError(
            f"{name}: expected one tensor, whose values can be checked, got a batch of them by torch.func.vmap, "
            "which shows none. Losses take many rows as they are, and the gradient of their sum with respect to "
            "hidden is that of each row; for gradients of parameters row by row, loop over the rows"
        )


def constant(name: str, value: Tensor) -> Tensor:
    """Return a tensor's values, through which no derivative flows: in no mode, and in no transform."""
    if torch.compiler.is_compiling():
        return value.detach()
    check_not_batched(name, value)
    with_directions = directions_are_taken()
    if with_directions:
        has_direction(value)  # raises if it has many
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    with outside_transforms():  # which would wrap it again
        value = value.detach()
        return forward_ad.unpack_dual(value).primal if with_directions else value


def outside_transforms() -> AbstractContextManager[object]:
    """Within it no transform of `torch.func` is at work: for what is made of constants alone, such as draws."""
    if torch.compiler.is_compiling() or not transforms_are_active():
        return nullcontext()
    return temporarily_clear_interpreter_stack()


def saved_tensors_have_hooks() -> bool:
    """Whether tensors saved for backward are packed, as by a checkpoint, which unpacks by a second forward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def graph_of_its_own() -> AbstractContextManager[object]:
    """Where a graph is made within a forward that differentiates it at once: without a second forward for that."""
    if not saved_tensors_have_hooks():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved)
