"""Which implementation of a kernel runs: torch's operators, Numba on a CPU, Triton on a CUDA device."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from vastmax.kernels import reference
from vastmax.validation import check_choice

BACKENDS = ("auto", "torch", "numba", "triton")

EXTRAS = {"numba": "cpu", "triton": "gpu"}
"""The extra that installs a backend."""

log = logging.getLogger("vastmax.kernels")

_used = "auto"
_modules: dict[str, ModuleType | None] = {}


class use:  # noqa: N801  a function to its users, that a `with` statement undoes, as torch.set_grad_enabled is
    r"""Choose the implementation of the kernels, from now on or within a `with` statement, for the whole process.

    `"torch"` is the meaning: torch's own operators, on every device. `"numba"` runs on the CPU and `"triton"` on
    CUDA devices; `"auto"`, the default, is Numba for tensors on the CPU and Triton for those on a CUDA device.
    Where a backend is not installed, or has no kernel for a tensor's dtype, torch's operators do the work; the
    first such absence is logged as a warning.

    Args:
        backend: `"auto"`, `"torch"`, `"numba"` or `"triton"`.

    Raises:
        ValueError: another name.

    Example:
        >>> with use("torch"):
        ...     backend()
        'torch'
    """

    def __init__(self, backend: str) -> None:
        global _used
        check_choice("backend", backend, BACKENDS)
        self._before, _used = _used, backend

    def __enter__(self) -> None:
        """Leave the choice as it is; it has been made."""

    def __exit__(self, *_: object) -> None:
        global _used
        _used = self._before


def backend() -> str:
    """Return the name that `use` was last given: `"auto"` to begin with."""
    return _used


def implementation(kernel: str, *tensors: Tensor | None) -> Callable[..., Any]:
    """Return the kernel of that name for tensors that lie together on a device."""
    module = _module_for(*(tensor for tensor in tensors if tensor is not None))
    function: Callable[..., Any] | None = getattr(module, kernel, None)
    return getattr(reference, kernel) if function is None else function


def has_kernel(kernel: str, *tensors: Tensor | None) -> bool:
    """Return whether another implementation than torch's operators has the kernel for these tensors."""
    return implementation(kernel, *tensors) is not getattr(reference, kernel)


def _module_for(*tensors: Tensor) -> ModuleType:
    device = tensors[0].device.type
    of_device = {"cpu": "numba", "cuda": "triton"}.get(device)
    if of_device is None or _used not in ("auto", of_device):
        return reference
    module = _loaded(of_device)
    if module is None or any(tensor.dtype not in module.DTYPES for tensor in tensors):
        return reference
    return module


def _loaded(name: str) -> ModuleType | None:
    """Import a backend once; say so, once, if it is not installed."""
    if name not in _modules:
        try:
            _modules[name] = importlib.import_module(f"vastmax.kernels.{name}")
        except ImportError as error:  # not installed, or it refuses what else is: another NumPy
            if error.name is not None and error.name.partition(".")[0] not in (name, "numpy", "llvmlite"):
                raise
            _modules[name] = None
            log.warning(
                "%s cannot be imported (%s): torch's operators take over, slower (pip install 'vastmax[%s]')",
                name,
                error,
                EXTRAS[name],
            )
    return _modules[name]


_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a compiler calls it, and takes what it returns
