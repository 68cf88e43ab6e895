"""Rounding to half precision whose mean is the number itself."""

import torch
from torch import Tensor


def stochastic_round(values: Tensor, dtype: torch.dtype, uniform: Tensor) -> Tensor:
    r"""Round towards zero or to the next number beyond, so that the expectation is the value.

    For neighbours $a \le |x| \le b$ in the half precision, the result has magnitude $b$ where
    $u < (|x| - a) / (b - a)$, and $a$ elsewhere. Numbers that the dtype has, infinities and NaN stay; a finite
    number beyond the largest becomes that.

    Args:
        values: float32, of any shape.
        dtype: `torch.bfloat16` or `torch.float16`.
        uniform: draws $u$ from [0, 1), in the shape of `values`.

    Returns:
        The rounded values in `dtype`.
    """
    magnitude = values.abs()
    nearest = values.to(dtype)
    # The bits of a float, read as an integer, count its magnitude in steps to the next one.
    bits = nearest.view(torch.int16) - (nearest.float().abs() > magnitude).to(torch.int16)
    lower, upper = (each.view(dtype).float().abs() for each in (bits, bits + 1))
    up = uniform < (magnitude - lower) / (upper - lower)
    return (bits + up.to(torch.int16)).view(dtype)
