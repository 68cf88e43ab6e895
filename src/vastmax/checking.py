"""Which values of tensors are looked at, and when: at once, by the device, or not at all."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

MODES = ("now", "device", "off")

log = logging.getLogger("vastmax.checks")

_chosen: str | None = None


class checks:  # noqa: N801  a function to its users, that a `with` statement undoes, as torch.set_grad_enabled is
    r"""Choose when values are checked, from now on or within a `with` statement, for the whole process.

    Types, dtypes and shapes are always checked. Values (ids in range, finite numbers, targets that can be drawn)
    are checked once, by the function that is called:

    - `"now"`: before any work is done, with an error that names the value and its place. On an accelerator the
      program waits for the device.
    - `"device"`: by an assertion on the device (`torch._assert_async`), for which nothing waits. On a CUDA device a
      failed one ends the context, as an index out of range does; on a CPU it is a RuntimeError.
    - `"off"`: not at all. What a wrong value does then is not said: an id out of range may read memory that is
      another tensor's.

    Without a choice it is `"now"` for tensors on a CPU and `"device"` for all others. In a compiled or exported
    graph, where no value can be looked at, `"now"` is `"device"`.

    Where values cannot be looked at, nor can the number of rows that count: rows of `ignore_index` are then scored
    with the others and left out of the loss, and heads of several softmaxes send every row through each. With
    `"now"` an accelerator is waited for, and they are picked out.

    Args:
        mode: `"now"`, `"device"` or `"off"`.

    Raises:
        ValueError: another mode.

    Example:
        >>> from vastmax.heads import Softmax
        >>> head = Softmax(4, 10)
        >>> with checks("off"):
        ...     loss = head(torch.ones(2, 4), torch.tensor([3, 7]))
    """

    def __init__(self, mode: str) -> None:
        global _chosen
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r:.80}")
        self._before, _chosen = _chosen, mode

    def __enter__(self) -> None:
        """Leave the choice as it is; it has been made."""

    def __exit__(self, *_: object) -> None:
        global _chosen
        _chosen = self._before


def are_off() -> bool:
    """Return whether values are not to be checked."""
    return _chosen == "off"


def at_hand(values: Tensor) -> bool:
    """Return whether the program may look at values: without waiting for a device, or because waiting is chosen."""
    if torch.compiler.is_compiling() or isinstance(values, FakeTensor):
        return False
    return _chosen == "now" or (values.device.type == "cpu" and _chosen != "device")


def require(holds: Tensor, said: str, error: Callable[[], Exception] | None = None) -> None:
    """Have a condition () bool hold: raise an error at once, or have the device assert it.

    Args:
        holds: the condition.
        said: what was expected, for an assertion.
        error: the error that names what was seen; a ValueError of `said` if omitted.
    """
    if at_hand(holds):
        if not holds:
            raise ValueError(said) if error is None else error()
    elif torch.compiler.is_compiling() or _asserts(holds.device.type):
        torch._assert_async(holds, said)


@functools.cache
def _asserts(device: str) -> bool:
    """Whether a kind of device has assertions, found by making one."""
    try:
        torch._assert_async(torch.ones((), dtype=torch.bool, device=device))
    except (NotImplementedError, RuntimeError):
        log.warning("%s has no assertions: values are not checked there, but for vastmax.checks('now')", device)
        return False
    return True
