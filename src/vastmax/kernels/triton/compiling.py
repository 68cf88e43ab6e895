"""Triton's compiler as the kernels use it, and what its language lacks.

The language is compiled for a CUDA device, or interpreted on tensors of the CPU where the environment variable
TRITON_INTERPRET is 1 before it is imported; the tests of the kernels run so where there is no device.
"""

# ruff: noqa: N803  (constants of a compilation have names in capitals, as in all of Triton)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor
from triton import language as tl

cdiv, next_power_of_2 = triton.cdiv, triton.next_power_of_2

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
"""A running maximum begins here and not at -inf, from which -inf could not be subtracted."""

OPTIONS = {"enable_fp_fusion": True}
"""Those of every compilation: a product and a sum are rounded once."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function of pointers on first use for each combination of dtypes and constants."""
    return triton.jit(function)


def launch(compiled: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument, in that many programs, possibly none."""
    if programs > 0:
        with torch.cuda.device_of(arguments[0]):
            compiled[(programs,)](*arguments, **constants, **OPTIONS)


def triton_dtype(dtype: torch.dtype) -> Any:
    """Return Triton's name of a floating-point dtype."""
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


def pointer(tensor: Tensor | None, other: Tensor) -> Tensor:
    """Return a tensor, or `other` in the place of one that a kernel will not read."""
    return other if tensor is None else tensor


@kernel
def add_product(a: tl.tensor, b: tl.tensor, total: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """Return total + a @ b, summed in float32."""
    if INTERPRETED:
        # The interpreter multiplies the bits of bfloat16 as if they were integers.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@kernel
def to_nearest(x: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """Return float32 numbers rounded to the nearest of another dtype."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        # The interpreter cuts bits off instead of rounding: what is added before carries where it should.
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@kernel
def log1p_of_share(x: tl.tensor) -> tl.tensor:
    """Return log(1 + x) for x from 0 to 1: 2 artanh(z) by its series, z = x / (2 + x) being at most 1/3."""
    z = x / (2 + x)
    y = z * z
    p = 1.0 / 15
    p = p * y + 1.0 / 13
    p = p * y + 1.0 / 11
    p = p * y + 1.0 / 9
    p = p * y + 1.0 / 7
    p = p * y + 1.0 / 5
    p = p * y + 1.0 / 3
    return 2 * z + 2 * z * y * p


@kernel
def softplus_and_sigmoid(x: tl.tensor) -> tl.tensor:
    """Return log(1 + e^x) and its derivative."""
    e = tl.exp(-tl.abs(x))
    return tl.maximum(x, 0.0) + log1p_of_share(e), tl.where(x >= 0, 1.0, e) / (1 + e)


@kernel
def cross_entropy(others: tl.tensor, partition: tl.tensor, behind: tl.tensor) -> tl.tensor:
    """Return the cross-entropy of a target that is `behind` the largest logit of a row.

    Where it leads and the others have little mass, by that mass alone: the partition, which holds the target's 1,
    has no room for it.

    Args:
        others: the sum of exponentials of the logits beside the target's, less the largest logit.
        partition: the same, with the target's.
        behind: the largest logit less the target's, at least 0.
    """
    small = (behind == 0) & (others < 1)
    return tl.where(small, log1p_of_share(tl.minimum(others, 1.0)), tl.log(partition) + behind)
