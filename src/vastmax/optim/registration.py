"""Parameters of an optimizer that have something done with them when a head is called."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import ModuleType
from typing import TypeVar

from torch import Tensor

from vastmax.optim.row_optimizer import RowOptimizer

Action = TypeVar("Action")


def registered(
    registry: ModuleType,
    optimizer: RowOptimizer,
    parameters: Sequence[Tensor],
    action: Callable[[RowOptimizer, Tensor], Action],
) -> ExitStack:
    """Register an action for each parameter, all of them or none; return what removes them.

    Args:
        registry: has `register(parameter, action)` and `remove(parameter)`.
        optimizer: whose parameters they are.
        parameters: at least one.
        action: makes the action, or raises an error.

    Raises:
        TypeError: the optimizer is of another package, or a parameter is no tensor.
        ValueError: no parameter, or one that is registered already.
    """
    if not isinstance(optimizer, RowOptimizer):
        raise TypeError(f"optimizer: expected one of vastmax.optim, got {type(optimizer).__name__}")
    if not parameters:
        raise ValueError("parameters: expected at least one, got none")
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameters: expected tensors, got {type(parameter).__name__}")
    actions = [(parameter, action(optimizer, parameter)) for parameter in parameters]
    with ExitStack() as stack:
        for parameter, one in actions:
            registry.register(parameter, one)
            stack.callback(registry.remove, parameter)
        return stack.pop_all()
