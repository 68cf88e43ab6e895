"""What a compiler takes as one operator, and what it leaves alone.

A loop over blocks would be traced once per block, and a kernel of other makers than torch cannot be traced at all.
So what is scored in blocks or by a kernel is one operator to `torch.compile` and `torch.export`, which asks for
the shapes of what comes out and calls the function itself. Outside of a graph nothing is between a call and its
function.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

library = torch.library.Library("vastmax", "DEF")
"""The namespace of the operators, `torch.ops.vastmax`."""


def uncompiled(function: F) -> F:
    """Have `torch.compile` call a function as it is.

    The compiler is imported by the first call, for which a program that never compiles need not wait before.
    """
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*args, **kwargs)

    return call  # type: ignore[return-value]


class Coded:
    """A function that a graph holds by its name and its numbers.

    Subclasses are frozen dataclasses, whose fields are numbers, texts, truth values or None.
    """

    _by_name: ClassVar[dict[str, type[Coded]]] = {}

    def __init_subclass__(cls) -> None:
        Coded._by_name[cls.__name__] = cls

    @staticmethod
    def coded(value: Any) -> Any:
        """Return a function as text; any other value as it is."""
        return f"{type(value).__name__}|{tuple(vars(value).values())!r}" if isinstance(value, Coded) else value

    @staticmethod
    def decoded(value: Any) -> Any:
        """Return what `coded` was given."""
        if not isinstance(value, str) or "|" not in value:
            return value
        name, numbers = value.split("|", 1)
        return Coded._by_name[name](*ast.literal_eval(numbers))


def define(
    name: str,
    arguments: str,
    function: Callable[..., list[Tensor]],
    shapes: Callable[..., list[Tensor]],
    *,
    draws: bool = False,
) -> Callable[..., list[Tensor]]:
    """Define an operator that takes `arguments`, in torch's words for them, and returns a list of tensors.

    Args:
        name: of the operator in `torch.ops.vastmax`.
        arguments: its parameters with their types, as in "Tensor hidden, int k".
        function: what it does.
        shapes: what comes out of it, as empty tensors.
        draws: whether it draws from torch's generator, so that no two calls are one.
    """
    tags = (torch.Tag.nondeterministic_seeded,) if draws else ()
    library.define(f"{name}({arguments}) -> Tensor[]", tags=tags)

    def call(*given: Any) -> list[Tensor]:
        # Torch calls operators with autograd out of reach, which the functions use within, for their own slopes.
        with (
            torch.no_grad(),
            torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False),
        ):
            return _owned(given, function(*given))

    library.impl(name, call, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vastmax::{name}", shapes, lib=library)
    operator: Callable[..., list[Tensor]] = getattr(torch.ops.vastmax, name).default
    return operator


def operator(arguments: str, shapes: Callable[..., list[Tensor]], *, draws: bool = False) -> Callable[[F], F]:
    """Have a function without a gradient, of positional arguments to a list of tensors, be an operator in graphs.

    The arguments are those of `define`.
    """

    def decorate(function: F) -> F:
        def decoded(*given: Any) -> list[Tensor]:
            return list(function(*map(Coded.decoded, given)))

        in_graph = define(function.__name__.strip("_"), arguments, decoded, shapes, draws=draws)

        @functools.wraps(function)
        def call(*given: Any) -> Any:
            return in_graph(*map(Coded.coded, given)) if torch.compiler.is_compiling() else function(*given)

        return call  # type: ignore[return-value]

    return decorate


def _owned(given: Sequence[Any], found: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors that share no memory with what was given nor with one another, as a graph takes it."""
    flat = (x for one in given for x in (one if isinstance(one, list) else [one]))
    taken = {x.untyped_storage().data_ptr() for x in flat if isinstance(x, Tensor)}
    owned = []
    for x in found:
        place = x.untyped_storage().data_ptr()
        owned.append(x.clone(memory_format=torch.contiguous_format) if place in taken else x.contiguous())
        taken.add(owned[-1].untyped_storage().data_ptr())
    return owned
