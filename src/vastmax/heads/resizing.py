"""Parameters with a row per class, given more rows or fewer where they are, and what an optimizer keeps of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer


def give_rows(parameters: Sequence[nn.Parameter], num_rows: int) -> list[Tensor]:
    """Give parameters that many rows, their values undefined, and return their former values.

    They stay the objects that modules which share them, and optimizers, know. Their gradients go.

    Raises:
        RuntimeError: a graph that ends in one of them is alive: what comes back through a later one would be held
            to the former shape. Nothing has been changed then.
    """
    former = [parameter.data for parameter in parameters]
    for parameter, rows in zip(parameters, former, strict=True):
        parameter.data = rows.new_empty(num_rows, *rows.shape[1:])
    if any(_is_held(parameter) for parameter in parameters):
        for parameter, rows in zip(parameters, former, strict=True):
            parameter.data = rows
        raise RuntimeError(
            "resize: expected no graph that ends in the head's parameters, got one that is kept alive by what was "
            "computed with them: delete it first, as by `del loss`"
        )
    for parameter in parameters:
        parameter.grad = None
    return former


def _is_held(parameter: nn.Parameter) -> bool:
    """Whether a graph keeps the node by which autograd knows the parameter, in its former shape."""
    if not parameter.requires_grad:
        return False
    (expected,) = get_gradient_edge(parameter).node._input_metadata  # a new node, unless one is kept
    return tuple(expected.shape) != tuple(parameter.shape)


def resize_state(optimizer: Optimizer, parameter: nn.Parameter, former: int) -> None:
    """Give an optimizer's state of a parameter the rows that the parameter has, new ones as if never updated."""
    group = next(group for group in optimizer.param_groups if any(own is parameter for own in group["params"]))
    state = optimizer.state.get(parameter, {})
    start = {"sum": group.get("initial_accumulator_value", 0.0)}  # of Adagrad; every other number starts at 0
    if "last_step" in state:  # of the rows of a `vastmax.optim` optimizer: those since nothing was missed
        start["last_step"] = state["step"].item()
    num_rows = len(parameter)
    for name, value in state.items():
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) == former:
            rows = value.new_full((num_rows, *value.shape[1:]), start.get(name, 0))
            kept = min(former, num_rows)
            rows[:kept] = value[:kept]
            state[name] = rows


def check_optimizer(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Raise unless an optimizer has these parameters."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    owned = {id(own) for group in optimizer.param_groups for own in group["params"]}
    if not all(id(parameter) in owned for parameter in parameters if parameter.requires_grad):
        raise ValueError("optimizer: expected one that has the head's weight and bias, got another")
