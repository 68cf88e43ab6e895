"""Parameters whose rows may be behind, and what brings them up to date before they are read."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from vastmax.compilation import uncompiled
from vastmax.differentiation import outside_transforms
from vastmax.recomputation import is_recomputation

Payment = Callable[[Tensor | None], None]
"""Brings rows of a parameter up to date where they are, those of some ids or all if None."""

_payments = WeakTensorKeyDictionary()
_in_use = False  # what `torch.compile` sees of it, which looks into no such dictionary


def register(parameter: Tensor, payment: Payment) -> None:
    """Have `payment` called before rows of this parameter are read.

    `payment` must not hold the parameter, which would then live for ever.

    Raises:
        ValueError: the parameter has a payment already.
    """
    if parameter in _payments:
        raise ValueError(
            f"parameter of shape {tuple(parameter.shape)}: expected one whose rows do not catch up yet before they "
            "are read, got one whose do"
        )
    weakref.finalize(parameter, _look).atexit = False  # before its entry, and so after that is gone
    _payments[parameter] = payment
    _look()


def remove(parameter: Tensor) -> None:
    """Let the parameter's rows be read as they are."""
    _payments.pop(parameter, None)
    _look()


def _look() -> None:
    global _in_use
    _in_use = len(_payments) > 0


def catch_up(tables: Iterable[Tensor | None], rows: Callable[[], Tensor] | None = None) -> None:
    """Bring up to date, of those tables that are registered, the rows that are about to be read.

    Args:
        tables: parameters, or None where there is none.
        rows: what returns their ids; all rows if omitted.
    """
    if _in_use:
        _catch_up(tables, rows)


@uncompiled
def _catch_up(tables: Iterable[Tensor | None], rows: Callable[[], Tensor] | None) -> None:
    if is_recomputation():  # which sees the rows that its forward saw, and those had caught up
        return
    payments = [_payments[table] for table in tables if table is not None and table in _payments]
    if payments:
        with torch.inference_mode(False), torch.no_grad(), outside_transforms():
            ids = None if rows is None else rows()
            for payment in payments:
                payment(ids)
