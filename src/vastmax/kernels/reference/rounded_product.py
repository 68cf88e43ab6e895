"""The product of matrices whose factors are rounded to bfloat16."""

from __future__ import annotations

from torch import Tensor


def rounded_product(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Make `out`, or add to it, the product of factors rounded to bfloat16, summed in float32; return it.

    Args:
        a: (M, K) float32.
        b: (K, N) float32.
        out: (M, N) float32, its rows one after the other.
        add: add to what is there.
    """
    product = a.bfloat16().float() @ b.bfloat16().float()
    return out.add_(product) if add else out.copy_(product)
