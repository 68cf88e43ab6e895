"""How exact the products of matrices are: as the inputs, or of factors rounded to bfloat16 where that is faster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vastmax.arithmetic import without_autocast
from vastmax.kernels.choice import log

_switch: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # the stubs do not know it

PRODUCT_DTYPES = (None, torch.bfloat16)


class _RoundedProducts:
    """Torch's switch for float32 products of bfloat16 factors on a CPU, which is one for the whole process.

    Threads may be within at the same time: the first sets the switch, the last sets it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._before = "none"
        self._told = False

    def __enter__(self) -> None:
        with self._lock:
            # First, for whoever fails to enter does not leave, and would never set the switch back.
            if not self._told:
                if not rounds_products():
                    log.warning("this processor does not round products to bfloat16: they are computed in float32")
                self._told = True
            if self._within == 0:
                self._before = _switch.fp32_precision
                _switch.fp32_precision = "bf16"
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                _switch.fp32_precision = self._before


_rounded = _RoundedProducts()


def rounds_products() -> bool:
    """Return whether the switch has float32 products round their factors to bfloat16, by making one.

    A processor may have bfloat16 instructions, and torch say so, and its float32 products be exact all the same.
    """
    factor = torch.full((64, 64), 1 + 2**-12, dtype=torch.float32, device="cpu")
    before = _switch.fp32_precision
    _switch.fp32_precision = "bf16"
    try:
        return bool((factor @ factor)[0, 0] == 64)
    finally:
        _switch.fp32_precision = before


@contextmanager
def products(dtype: torch.dtype | None, device: torch.device) -> Iterator[None]:
    """Within it matrix products of float32 round their factors to `dtype`, if any, and sum in float32."""
    with without_autocast(device):
        if dtype is None:
            yield
        else:
            with _rounded:
                yield


def check_product_dtype(dtype: torch.dtype | None, device: torch.device | None = None) -> None:
    """Raise unless products can be computed so, on the device if it is known."""
    if dtype not in PRODUCT_DTYPES:
        raise ValueError(f"product_dtype: expected torch.bfloat16 or None, got {dtype!r}")
    if dtype is not None and device is not None and device.type != "cpu":
        raise ValueError(f"product_dtype: expected tensors on the CPU beside {dtype}, got device {device}")
