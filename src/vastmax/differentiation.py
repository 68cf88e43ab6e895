"""Gradients by hand, by torch's operators where more is asked than those give, and graphs that end at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad


class Fused(torch.autograd.Function):
    """A function whose gradient is written by hand: made block by block, or by a kernel.

    Such a gradient has no derivative of its own, knows no directions, and needs the numbers themselves. So where it
    is to be differentiated in turn, in forward mode and within `torch.func`, the function is `plain`: the same, in
    torch's operators, which hold all logits at once and give dense gradients.

    A subclass states `plain(*arguments)`, `forward(ctx, *arguments)`, which calls `keep`, and `backward` under
    `differentiable_by(plain)`. It is called by `call`, not by `apply`.
    """

    plain: Callable[..., Any]

    @classmethod
    def call(cls, *arguments: Any) -> Any:
        """Return the function of its arguments, differentiable in every way that torch has of asking."""
        if transforms_are_active() or (directions_are_taken() and any(map(has_direction, arguments))):
            return cls.plain(*arguments)
        return cls.apply(*arguments)  # type: ignore[no-untyped-call]


def keep(ctx: Any, arguments: tuple[Any, ...], *made: Tensor | None) -> None:
    """Save the arguments of a fused function, and what else its gradient is made of."""
    ctx.options = tuple(None if isinstance(x, Tensor) else x for x in arguments)
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in arguments), *made)


def kept(ctx: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return what `keep` saved: the arguments, and what else."""
    saved, count = ctx.saved_tensors, len(ctx.options)
    arguments = (option if x is None else x for x, option in zip(saved[:count], ctx.options, strict=True))
    return tuple(arguments), saved[count:]


def differentiable_by(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have autograd differentiate `plain` where the gradient of a fused function is to be differentiated in turn.

    It is where grad mode is on within the backward pass, as by `create_graph=True`. What flows in need not show it:
    the gradient of a loss which is backpropagated as it is comes in as a constant, 1.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def call(ctx: Any, *upstream: Tensor) -> Any:
            if takes_operators(*upstream):
                return _gradients_of(plain, ctx, upstream)
            return backward(ctx, *upstream)

        return call

    return decorate


def _gradients_of(plain: Callable[..., Any], ctx: Any, upstream: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments, None where none is wanted, as functions of arguments and upstream."""
    twice = torch.is_grad_enabled()
    arguments, _ = kept(ctx)
    with torch.enable_grad(), torch.autocast(upstream[0].device.type, enabled=False):
        # Views, for one argument may be another, or be made of it: each has the gradient of its own place.
        inputs = [x.view_as(x) if wanted else x for x, wanted in zip(arguments, ctx.needs_input_grad, strict=True)]
        found = plain(*inputs)
        outputs = found if isinstance(found, tuple) else (found,)
        flows = [(out, flow) for out, flow in zip(outputs, upstream, strict=True) if out.requires_grad]
        gradients = torch.autograd.grad(
            [out for out, _ in flows],
            [x for x, wanted in zip(inputs, ctx.needs_input_grad, strict=True) if wanted],
            [flow for _, flow in flows],
            create_graph=twice,
            allow_unused=True,
        )
    remaining = iter(gradients)
    return tuple(next(remaining) if wanted else None for wanted in ctx.needs_input_grad)


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
    check_not_batched(name, value)
    with_directions = directions_are_taken()
    if with_directions:
        has_direction(value)  # raises if it has many
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    value = value.detach()
    return forward_ad.unpack_dual(value).primal if with_directions else value


def outside_transforms() -> AbstractContextManager[object]:
    """Within it no transform of `torch.func` is at work: for what is made of constants alone, such as draws."""
    return temporarily_clear_interpreter_stack() if transforms_are_active() else nullcontext()


def saved_tensors_have_hooks() -> bool:
    """Whether tensors saved for backward are packed, as by a checkpoint, which unpacks by a second forward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def graph_of_its_own() -> AbstractContextManager[object]:
    """Where a graph is made within a forward that differentiates it at once: without a second forward for that."""
    if not saved_tensors_have_hooks():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved)
