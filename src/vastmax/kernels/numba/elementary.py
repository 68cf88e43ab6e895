"""Exponentials and logarithms that a compiler can apply to a vector at a time, accurate to an ulp or two."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba.extending import overload

# Not reassociated: the reduction by two parts of ln 2 would be undone.
_exact = numba.njit(fastmath={"contract"}, error_model="numpy", forceinline=True)

_LOG2E = np.float32(math.log2(math.e))
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(math.log(2) - 0.693359375)
_LEAST = np.float32(-87.0)
_MOST = np.float32(88.72284)
_ROUNDER = np.float32(12582912.0)
_INF = np.float32(np.inf)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


@_exact
def _exp32(x: Any) -> Any:
    # e^x = 2^n e^r with |r| <= ln(2) / 2; adding 1.5 * 2^23 leaves n in the last bits.
    shifted = x * _LOG2E + _ROUNDER
    n = shifted - _ROUNDER
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * (r * r) + r + _ONE
    bits = np.int32((np.float32(shifted).view(np.int32) + np.int32(127)) << np.int32(23))
    return p * np.int32(bits).view(np.float32)


def exponential(x: Any) -> Any:
    """Return e^x for x up to 0; float32 below the normal numbers becomes 0."""
    raise NotImplementedError("compiled only")


@overload(exponential, jit_options={"fastmath": {"contract"}, "error_model": "numpy", "forceinline": True})
def _exponential(x: Any) -> Any:
    def single(x: Any) -> Any:
        e = _exp32(max(x, _LEAST))
        return e if x > _LEAST else (_ZERO if x <= _LEAST else x)

    def double(x: Any) -> Any:
        return math.exp(x)

    return single if x == numba.float32 else double


def log1p_of_share(x: Any) -> Any:
    """Return log(1 + x) for x from 0 to 1."""
    raise NotImplementedError("compiled only")


@overload(log1p_of_share, jit_options={"fastmath": {"contract"}, "error_model": "numpy", "forceinline": True})
def _log1p_of_share(x: Any) -> Any:
    def single(x: Any) -> Any:
        # 2 artanh(z) by its series, where z = x / (2 + x) is at most 1/3.
        z = x / (_TWO + x)
        y = z * z
        p = np.float32(1 / 15)
        p = p * y + np.float32(1 / 13)
        p = p * y + np.float32(1 / 11)
        p = p * y + np.float32(1 / 9)
        p = p * y + np.float32(1 / 7)
        p = p * y + np.float32(1 / 5)
        p = p * y + np.float32(1 / 3)
        return _TWO * z + _TWO * z * y * p

    def double(x: Any) -> Any:
        return math.log1p(x)

    return single if x == numba.float32 else double


LANES = 64


@numba.njit(error_model="numpy", forceinline=True)
def largest(x: Any, least: Any) -> Any:
    """Return the largest of `x` and `least`; any of them if one is nan, which the sums after it show.

    In lanes of their own, for a compiler keeps the order of comparisons of which one may be nan.
    """
    lanes = np.full(LANES, least, x.dtype)
    whole = len(x) // LANES * LANES
    for i in range(0, whole, LANES):
        part = x[i : i + LANES]
        for j in range(LANES):
            lanes[j] = part[j] if part[j] > lanes[j] else lanes[j]
    found = least
    for j in range(LANES):
        found = lanes[j] if lanes[j] > found else found
    for i in range(whole, len(x)):
        found = x[i] if x[i] > found else found
    return found
