"""How exact the products of matrices are, and by which of the ways that a CPU has they are computed.

Torch computes float32 products by its own library, mostly MKL, or by oneDNN, if a switch is thrown. What oneDNN
does with the factors depends on the processor: one with AMX rounds them to bfloat16, others leave them as they are,
and some of those are faster by it. No flag says so. It is tried, once in a process. Where torch rounds nothing, a
kernel of ours does, on processors that have the instruction.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vastmax.arithmetic import without_autocast
from vastmax.kernels import has_kernel, implementation
from vastmax.kernels.choice import log
from vastmax.validation import shown

PRODUCT_DTYPES = (None, torch.bfloat16)

ROWS, CLASSES, FEATURES = 256, 4096, 128
"""Shape of the products that are timed: a few milliseconds each on two cores."""

LARGE = ROWS * CLASSES * FEATURES
"""Multiplications of hidden rows with class rows from which on the way that was faster is taken."""

ROUNDS = 5
"""Times that each way is timed, in turn, after one that is not counted. The shortest counts."""

FASTER = 1.1
"""How much faster oneDNN must be, lest chance decide between equals."""

BETWEEN = 1 + 2**-12
"""A number of float32 that is 1 in bfloat16 and in TF32."""

_of_mkldnn: Any = getattr(torch.backends.mkldnn, "matmul", None)
"""The switch for CPUs alone. Older versions of torch have one for all devices, by which a GPU takes TF32."""


class _Switch:
    """Torch's switch, which is one for the process, thrown: by the first thread to enter, set back by the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._before = "none"

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._before = self._throw()
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._set_back()

    def _throw(self) -> str:
        """Take oneDNN; return what is to be set back."""
        if _of_mkldnn is None:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("medium")
            return before
        before = _of_mkldnn.fp32_precision
        # What it inherits reads like its own. Set back as its own, it would no longer follow.
        inherited = before == torch.backends.mkldnn.fp32_precision
        _of_mkldnn.fp32_precision = "bf16"
        return "none" if inherited else before

    def _set_back(self) -> None:
        if _of_mkldnn is None:
            torch.set_float32_matmul_precision(self._before)
        else:
            _of_mkldnn.fp32_precision = self._before

    def after_fork(self) -> None:
        """Forget the threads of the parent, which a child does not have."""
        self._lock = threading.Lock()
        if self._within:
            self._within = 0
            self._set_back()


_switch = _Switch()
_trying = threading.RLock()


def _after_fork() -> None:
    global _trying
    _trying = threading.RLock()
    _switch.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Here(threading.local):
    """Whether the products of this thread are made by the kernel that rounds their factors."""

    rounds = False


_here = _Here()


@contextmanager
def products(
    dtype: torch.dtype | None, device: torch.device, arithmetic: torch.dtype = torch.float32, count: int = 0
) -> Iterator[None]:
    """Within it `multiply` rounds the factors of float32 products to `dtype`, if any, and sums in float32.

    Args:
        dtype: bfloat16 or None.
        device: where the factors are.
        arithmetic: what they are.
        count: multiplications in each of the products that follow. From `LARGE` on they are computed in the
            faster of the ways that are exact, if torch is not to `use_deterministic_algorithms`: the ways differ in
            the last digits, and which is the faster one might be another in the next process.
    """
    switch, kernel = _way(dtype, device, arithmetic, count)
    before, _here.rounds = _here.rounds, kernel
    try:
        with without_autocast(device), switch:
            yield
    finally:
        _here.rounds = before


def multiply(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Make `out`, or add to it, the product of a and b, as `products` says."""
    if _here.rounds:
        found: Tensor = implementation("rounded_product", a, b, out)(a, b, out, add=add)
        return found
    return out.addmm_(a, b) if add else torch.mm(a, b, out=out)


def multiplications(hidden: Tensor, weight: Tensor) -> int:
    """Return how many numbers are multiplied to score every row (N, d) with every class row (V, d)."""
    return hidden.shape[0] * weight.numel()


def _way(
    dtype: torch.dtype | None, device: torch.device, arithmetic: torch.dtype, count: int
) -> tuple[AbstractContextManager[None], bool]:
    """What does as it is asked: torch's switch or nothing, and whether the kernel that rounds."""
    if device.type != "cpu":
        return nullcontext(), False
    with _trying:
        if dtype is not None:
            if arithmetic != torch.float32:
                _say(f"products of {arithmetic} are not rounded to bfloat16")
            elif rounds_products():
                return _switch, False
            elif has_kernel("rounded_product", torch.empty(0, dtype=arithmetic, device="cpu")):
                return nullcontext(), True
            else:
                _say("this processor does not round products to bfloat16: they are computed in float32")
        large = count >= LARGE and not torch.are_deterministic_algorithms_enabled()
        # Who asked for nothing does not get the switch for all devices thrown.
        return _switch if large and _of_mkldnn is not None and _is_faster() else nullcontext(), False


@cache
def _say(what: str) -> None:
    """Say it once."""
    log.warning(what)


def rounds_products() -> bool:
    """Return whether the switch has float32 products round their factors to bfloat16.

    A processor may have bfloat16 instructions, and torch say so, and its float32 products be exact all the same.
    """
    with _trying:
        return _tried() == 1.0


@cache
def _is_faster() -> bool:
    """Whether products by the switch are exact, and faster than without."""
    return _tried() == BETWEEN and _takes_less_time()


@cache
def _tried() -> float | None:
    """What the switch makes of each product of two numbers, 1 and `BETWEEN`: one of them; None if not always."""
    with _undisturbed(), _switch:
        shapes = (64, 64, 64), (ROWS, 512, FEATURES)
        found = {float(x) for shape in shapes for mean in _means(*shape) for x in mean.aminmax()}
    return found.pop() if len(found) == 1 else None


def _means(rows: int, classes: int, features: int) -> Iterator[Tensor]:
    """The three products of a linear layer, each divided by the number of its terms.

    Of the two factors of a term one is `BETWEEN`. Of up to 4096 terms the sums are exact, in any order.
    """
    yield _factor(rows, features) @ _factor(classes, features, 1).t() / features
    yield _factor(rows, classes) @ _factor(features, classes, 1).t().contiguous() / classes
    slope, hidden = _factor(classes, rows).t().contiguous(), _factor(features, rows, 1).t().contiguous()
    yield torch.zeros(classes, features, dtype=torch.float32, device="cpu").addmm_(slope.t(), hidden) / rows


def _factor(outer: int, terms: int, first: int = 0) -> Tensor:
    """A matrix of 1, with `BETWEEN` at every second term from the first on."""
    factor = torch.ones(outer, terms, dtype=torch.float32, device="cpu")
    factor[:, first::2] = BETWEEN
    return factor


def _takes_less_time() -> bool:
    """Whether the switch makes the product of hidden rows and class rows faster.

    By the time that this thread spent computing: beside other work a clock on the wall tells chance. Where that is
    not counted in less than milliseconds, both may be 0, and neither is faster.
    """
    with _undisturbed():
        hidden, class_rows = _factor(ROWS, FEATURES), _factor(CLASSES, FEATURES)
        logits = torch.empty(ROWS, CLASSES, dtype=torch.float32, device="cpu")

        def seconds(way: AbstractContextManager[None]) -> float:
            with way:
                start = time.thread_time()
                torch.mm(hidden, class_rows.t(), out=logits)
                return time.thread_time() - start

        timed = [(seconds(nullcontext()), seconds(_switch)) for _ in range(ROUNDS + 1)][1:]
    return min(usual for usual, _ in timed) > FASTER * min(switched for _, switched in timed)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Whatever is going on where a product is tried, it is a product of float32 numbers."""
    with _disable_current_modes(), torch.no_grad(), torch.autocast("cpu", enabled=False):
        yield


def check_product_dtype(dtype: torch.dtype | None, device: torch.device | None = None) -> None:
    """Raise unless products can be computed so, on the device if it is known."""
    if dtype not in PRODUCT_DTYPES:
        raise ValueError(f"product_dtype: expected torch.bfloat16 or None, got {shown(dtype)}")
    if dtype is not None and device is not None and device.type != "cpu":
        raise ValueError(f"product_dtype: expected tensors on the CPU beside {dtype}, got device {device}")
