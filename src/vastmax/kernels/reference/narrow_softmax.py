"""The softmax of a linear layer of many classes and few features, whose logits are cheaper made than stored."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 20
"""Logits alive at a time: 4 MB in float32 stay in the cache."""


def narrow_log_partition(hidden: Tensor, weight: Tensor) -> Tensor:
    r"""Return $\log Z_r = \log \sum_c e^{h_r \cdot w_c}$ of each row.

    Args:
        hidden: (N, d) in the dtype of the arithmetic.
        weight: (K, d), K at least 1, perhaps of lower precision.

    Returns:
        (N,) in the dtype of `hidden`.
    """
    masses = [(hidden @ class_rows.t()).logsumexp(-1) for class_rows in _blocks(hidden, weight)]
    return torch.stack(masses).logsumexp(0)


def narrow_log_partition_gradients(
    hidden: Tensor, weight: Tensor, log_partition: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return the gradients of $\sum_r u_r \log Z_r$ with respect to hidden and weight.

    $$\sum_c g_{rc} w_c, \quad \sum_r g_{rc} h_r, \qquad g_{rc} = u_r e^{h_r \cdot w_c - \log Z_r}$$

    Args:
        hidden: (N, d) in the dtype of the arithmetic.
        weight: (K, d), K at least 1, perhaps of lower precision.
        log_partition: (N,) as `narrow_log_partition` returns it.
        upstream: (N,) u.

    Returns:
        (N, d) and (K, d), in the dtype of `hidden`.
    """
    grad_hidden, grad_weight = torch.zeros_like(hidden), []
    for class_rows in _blocks(hidden, weight):
        slope = (hidden @ class_rows.t()).sub_(log_partition.unsqueeze(-1)).exp_().mul_(upstream.unsqueeze(-1))
        grad_hidden.addmm_(slope, class_rows)
        grad_weight.append(slope.t() @ hidden)
    return grad_hidden, torch.cat(grad_weight)


def _blocks(hidden: Tensor, weight: Tensor) -> list[Tensor]:
    return [rows.to(hidden.dtype) for rows in weight.split(max(1, BLOCK_ELEMENTS // max(len(hidden), 1)))]
