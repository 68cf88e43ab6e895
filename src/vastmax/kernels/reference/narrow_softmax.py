"""The softmax of a linear layer of many classes and few features, whose logits are cheaper made than stored."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vastmax.kernels.reference.softmax_block import BlockSums, TargetPlaces, row_sums

BLOCK_ELEMENTS = 1 << 20
"""Logits alive at a time: 4 MB in float32 stay in the cache."""


def narrow_partition(hidden: Tensor, weight: Tensor, label: Tensor) -> tuple[Tensor, BlockSums]:
    r"""Return the logit of each row's label, and what the logits of the other classes sum to, block by block.

    $$s_{r y_r}, \qquad m_{rb} = \max_{c \in b, c \ne y_r} s_{rc}, \quad
      M_{rb} = \sum_{c \in b, c \ne y_r} e^{s_{rc} - m_{rb}}, \qquad s_{rc} = h_r \cdot w_c$$

    Args:
        hidden: (N, d) in the dtype of the arithmetic.
        weight: (K, d), K at least 1, perhaps of lower precision.
        label: (N,) int64.

    Returns:
        (N,), and sums (B, N) of B blocks, as many as the implementation likes; in the dtype of `hidden`.
    """
    label_logit, sums = hidden.new_zeros(len(hidden)), []
    for first, class_rows in _blocks(hidden, weight):
        logits = hidden @ class_rows.t()
        places = TargetPlaces.of(label, first, first + len(class_rows))
        label_logit = torch.where(places.inside, places.exchange_(logits, -torch.inf), label_logit)
        sums.append(row_sums(logits))
    return label_logit, BlockSums(*(torch.stack(parts) for parts in zip(*sums, strict=True)))


def narrow_partition_gradients(
    hidden: Tensor, weight: Tensor, label: Tensor, maximum: Tensor, grad_others: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return what flows back to hidden and weight from the logits of other classes than the rows' labels.

    $$\sum_c g_{rc} w_c, \quad \sum_r g_{rc} h_r, \qquad g_{rc} = [c \ne y_r]\, u_r e^{h_r \cdot w_c - m_r}$$

    Args:
        hidden: (N, d) in the dtype of the arithmetic.
        weight: (K, d), K at least 1, perhaps of lower precision.
        label: (N,) int64.
        maximum: (N,) m, at least the row's largest logit.
        grad_others: (N,) u.

    Returns:
        (N, d) and (K, d), in the dtype of `hidden`.
    """
    grad_hidden, grad_weight = torch.zeros_like(hidden), []
    for first, class_rows in _blocks(hidden, weight):
        logits = hidden @ class_rows.t()
        TargetPlaces.of(label, first, first + len(class_rows)).exchange_(logits, -torch.inf)
        slope = logits.sub_(maximum.unsqueeze(-1)).exp_().mul_(grad_others.unsqueeze(-1))
        grad_hidden.addmm_(slope, class_rows)
        grad_weight.append(slope.t() @ hidden)
    return grad_hidden, torch.cat(grad_weight)


def _blocks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The first class of each block, and its class rows."""
    size = max(1, BLOCK_ELEMENTS // max(len(hidden), 1))
    for first in range(0, len(weight), size):
        yield first, weight[first : first + size].to(hidden.dtype)
