"""Class rows read where they lie: products with them, and sums of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

GATHERED_ELEMENTS = 1 << 20
"""Gathered class rows alive at a time where each row has its own: 4 MB in float32 stay in the cache."""


def gather_dot(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    r"""Return the products $s_{rj} = h_r \cdot w_{c_{rj}}$ of each row with class rows of its own.

    Args:
        hidden: (N, d) in the dtype of the arithmetic.
        weight: (V, d), perhaps of lower precision.
        ids: (N, K) int64.

    Returns:
        (N, K) in the dtype of `hidden`.
    """
    logits = hidden.new_empty(ids.shape)
    step = max(1, GATHERED_ELEMENTS // max(ids.shape[1] * weight.shape[1], 1))
    for start in range(0, ids.shape[0], step):
        rows = slice(start, start + step)
        class_rows = functional.embedding(ids[rows], weight).to(hidden.dtype)
        torch.bmm(class_rows, hidden[rows].unsqueeze(-1), out=logits[rows].unsqueeze(-1))
    return logits


def gather_sum(table: Tensor, ids: Tensor, starts: Tensor, coefficient: Tensor) -> Tensor:
    r"""Return the sums $\sum_{i = a_s}^{a_{s+1} - 1} x_i\, t_{c_i}$ over consecutive runs of table rows.

    Args:
        table: (M, d), perhaps of lower precision.
        ids: (L,) int64 rows of the table.
        starts: (S,) int64 where each run starts, $a_0 = 0$; the last ends with `ids`.
        coefficient: (L,) in the dtype of the arithmetic.

    Returns:
        (S, d) in the dtype of `coefficient`.
    """
    if len(ids) == 0:
        return coefficient.new_zeros(len(starts), table.shape[1])
    if table.dtype != coefficient.dtype:
        # The rows of a half-precision table are summed in the dtype of the coefficients.
        ids_used, ids = ids.unique(return_inverse=True)
        table = table[ids_used].to(coefficient.dtype)
    return functional.embedding_bag(ids, table, starts, mode="sum", per_sample_weights=coefficient)
