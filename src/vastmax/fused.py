"""Gradients by hand, by torch's operators where more is asked than those give; and the same as operators."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vastmax.arithmetic import without_autocast
from vastmax.compilation import Coded, define, library
from vastmax.differentiation import directions_are_taken, has_direction, takes_operators, transforms_are_active

Shapes = tuple[list[Tensor], list[Tensor | None]]
"""Empty tensors as a function returns them, and as it keeps them, beside its arguments, for its gradient."""


class Fused:
    """A function whose gradient is written by hand: made block by block, or by a kernel.

    Such a gradient has no derivative of its own, knows no directions, and needs the numbers themselves. So where it
    is to be differentiated in turn, in forward mode and within `torch.func`, the function is `plain`: the same, in
    torch's operators, which hold all logits at once and give dense gradients.

    A subclass states `plain(*arguments)`, `forward(ctx, *arguments)`, which calls `keep`, and `backward` under
    `differentiable_by(plain)`, and is called by `call`. In a compiled graph it is one operator if it
    states its `arguments`, in torch's words, and the `shapes` of what it returns and keeps, and else `plain`.
    """

    plain: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]

    arguments: str | None = None
    """Its parameters with their types; a list of tensors, if it is the last, is of all further arguments."""

    shapes: Callable[..., Shapes]
    """`shapes(wanted, *arguments)`: as empty tensors, what it returns and what it keeps beside its arguments."""

    _operator: FusedOperator
    _function: type[torch.autograd.Function]

    @staticmethod
    def num_outputs(*arguments: Any) -> int | None:
        """The number of tensors that it returns; None if it returns one by itself."""
        return None

    def __init_subclass__(cls) -> None:
        if "forward" not in vars(cls):  # what several have in common
            return
        steps = {"forward": staticmethod(cls.forward), "backward": staticmethod(cls.backward)}
        cls._function = type(cls.__name__, (torch.autograd.Function,), steps)
        if cls.arguments is not None:
            cls._operator = FusedOperator(cls, cls.arguments)

    @classmethod
    def call(cls, *arguments: Any) -> Any:
        """Return the function of its arguments, differentiable in every way that torch has of asking."""
        if torch.compiler.is_compiling():
            return cls.plain(*arguments) if cls.arguments is None else cls._operator(*arguments)
        if transforms_are_active() or (directions_are_taken() and any(map(has_direction, arguments))):
            return cls.plain(*arguments)
        return cls._function.apply(*arguments)


class FusedOperator:
    """A fused function as an operator, and its gradient as another.

    Both take what they are of one another as lists: the operator returns what the function returns and what it
    keeps; the gradient takes what flows in and what was kept, and returns the gradients that are wanted.
    """

    def __init__(self, function: type[Fused], arguments: str) -> None:
        self.function = function
        self.several = arguments.split(",")[-1].strip().startswith("Tensor[]")
        self.num_arguments = arguments.count(",") + 1
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", function.__name__.strip("_")).lower()
        self.forward = define(name, f"int[] wanted, {arguments}", self._forward, self._forward_shapes)
        self.backward = define(
            f"{name}_backward",
            f"int[] wanted, Tensor[] upstream, Tensor[] kept, {arguments}",
            self._backward,
            self._backward_shapes,
        )
        torch.library.register_autograd(
            f"vastmax::{name}", self._differentiate, setup_context=self._keep, lib=library
        )

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns."""
        differentiated = arguments if torch.is_grad_enabled() else ()
        wanted = [i for i, x in enumerate(differentiated) if isinstance(x, Tensor) and x.requires_grad]
        found = self.forward(wanted, *self._packed(arguments))
        count = self.function.num_outputs(*arguments)
        return found[0] if count is None else tuple(found[:count])

    def _packed(self, arguments: Sequence[Any]) -> Sequence[Any]:
        arguments = [*map(Coded.coded, arguments)]
        if not self.several:
            return arguments
        return *arguments[: self.num_arguments - 1], list(arguments[self.num_arguments - 1 :])

    def _unpacked(self, arguments: Sequence[Any]) -> Sequence[Any]:
        arguments = [*map(Coded.decoded, arguments)]
        return [*arguments[:-1], *arguments[-1]] if self.several else arguments

    def _forward(self, wanted: list[int], *packed: Any) -> list[Tensor]:
        arguments = self._unpacked(packed)
        ctx = Context(wanted, arguments)
        found = self.function.forward(ctx, *arguments)
        outputs = found if isinstance(found, tuple) else (found,)
        return [*outputs, *map(_something, ctx.saved_tensors[len(arguments) :])]

    def _forward_shapes(self, wanted: list[int], *packed: Any) -> list[Tensor]:
        outputs, kept = self.function.shapes(wanted, *self._unpacked(packed))
        return [*outputs, *map(_something, kept)]

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        ctx.wanted, *packed = inputs
        arguments = self._unpacked(packed)
        count = self.function.num_outputs(*arguments) or 1
        ctx.count = count
        keep(ctx, tuple(arguments), *output[count:])

    def _differentiate(self, ctx: Any, upstream: list[Tensor]) -> tuple[Any, ...]:
        arguments, made = kept(ctx)
        found = iter(self.backward(ctx.wanted, upstream[: ctx.count], list(made), *self._packed(arguments)))
        gradients = [next(found) if i in ctx.wanted else None for i in range(len(arguments))]
        return None, *(self._packed(gradients))

    def _backward(
        self, wanted: list[int], upstream: list[Tensor], made: list[Tensor], *packed: Any
    ) -> list[Tensor]:
        arguments = self._unpacked(packed)
        ctx = Context(wanted, arguments)
        keep(ctx, tuple(arguments), *(x if x.dtype != torch.bool else None for x in made))
        gradients = self.function.backward(ctx, *upstream)
        if any(gradients[i] is None for i in wanted):
            raise RuntimeError(
                "torch.compile: expected parameters with a gradient, got one that is updated in backward; wrap the "
                "call of its head in torch.compiler.disable"
            )
        return [gradients[i] for i in wanted]

    def _backward_shapes(
        self, wanted: list[int], upstream: list[Tensor], made: list[Tensor], *packed: Any
    ) -> list[Tensor]:
        arguments = self._unpacked(packed)
        return [torch.empty_like(arguments[i], memory_format=torch.contiguous_format) for i in wanted]


def _something(value: Tensor | None) -> Tensor:
    """Return a tensor in place of None: nothing that is kept is bool."""
    return torch.empty(0, dtype=torch.bool) if value is None else value


class Context:
    """What a fused function needs of autograd's context, where it is called by an operator."""

    options: tuple[Any, ...]

    def __init__(self, wanted: list[int], arguments: Sequence[Any]) -> None:
        self.needs_input_grad = tuple(i in wanted for i in range(len(arguments)))
        self.saved_tensors: tuple[Tensor | None, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors."""
        self.saved_tensors = tensors


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
    with torch.enable_grad(), without_autocast(upstream[0].device):
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
