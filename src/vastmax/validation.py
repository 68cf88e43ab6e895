"""Checks of arguments: each error names the argument, the value seen and what was expected."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def check_positive_int(name: str, value: object) -> int:
    """Return `value` if it is an integer of at least 1; raise TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer of at least 1, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value}")
    return value


def check_finite_number(name: str, value: object, *, above: float = -math.inf) -> float:
    """Return `value` as a float if it is finite and greater than `above`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value) or value <= above:
        bound = "" if above == -math.inf else f" greater than {above:g}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {value}")
    return float(value)


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def check_hidden(name: str, hidden: Tensor, in_features: int) -> None:
    """Raise unless `hidden` is floating, shaped (..., in_features) and finite."""
    if not isinstance(hidden, Tensor):
        raise TypeError(f"{name}: expected a tensor (..., {in_features}), got {type(hidden).__name__}")
    if not hidden.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got dtype {hidden.dtype}")
    if hidden.ndim == 0 or hidden.shape[-1] != in_features:
        raise ValueError(f"{name}: expected shape (..., {in_features}), got {tuple(hidden.shape)}")
    check_finite(name, hidden)


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError naming the first NaN or infinity of `values`."""
    finite = values.isfinite()
    if not finite.all():
        place = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(f"{name}: expected finite values, got {values[place].item()} at {place}")


def check_ids(name: str, ids: Tensor, num_classes: int) -> None:
    """Raise unless `ids` is an int64 tensor of class ids in [0, num_classes).

    The range is checked on any device before the ids are used to index, at the price of one
    synchronisation on an accelerator: an id past the end is a memory fault there, not an error.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name}: expected an int64 tensor of class ids, got {type(ids).__name__}")
    if ids.dtype != torch.int64:
        raise TypeError(f"{name}: expected int64 class ids, got dtype {ids.dtype}")
    outside = (ids < 0) | (ids >= num_classes)
    if outside.any():
        place = tuple(outside.nonzero()[0].tolist())
        raise ValueError(f"{name}: expected class ids in [0, {num_classes}), got {ids[place].item()} at {place}")
