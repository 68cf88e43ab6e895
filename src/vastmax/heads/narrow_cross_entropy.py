"""The cross-entropy of each row in a softmax of many classes and few features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vastmax.compilation import uncompiled
from vastmax.differentiation import once_differentiable
from vastmax.kernels import implementation

NARROW = 16
"""Features up to which logits are sooner made again, from classes in the cache, than read from memory."""


def is_narrow(weight: Tensor) -> bool:
    """Return whether the logits of these class rows (K, d) are better not stored: on a CPU, with few features."""
    return weight.device.type == "cpu" and weight.shape[1] <= NARROW


@uncompiled
def narrow_cross_entropy(hidden: Tensor, weight: Tensor, label: Tensor) -> Tensor:
    r"""Return the cross-entropy of each row, $\ell_r = \log \sum_c e^{h_r \cdot w_c} - h_r \cdot w_{y_r}$.

    Two passes over the classes, one for the loss and one for its gradient, each of which makes the logits of some
    classes at a time, in the nearest cache.

    Args:
        hidden: (N, d) in the dtype of the arithmetic.
        weight: (K, d) class rows.
        label: (N,) class ids.
    """
    loss: Tensor = _NarrowCrossEntropy.apply(hidden, weight, label)  # type: ignore[no-untyped-call]
    return loss


class _NarrowCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, label: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            log_partition = implementation("narrow_log_partition", hidden, weight)(hidden, weight)
            target_logit = (hidden * weight[label].to(hidden.dtype)).sum(-1)
        ctx.save_for_backward(hidden, weight, label, log_partition)
        loss: Tensor = log_partition - target_logit
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, label, log_partition = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            gradients = implementation("narrow_log_partition_gradients", hidden, weight)
            grad_hidden, grad_weight = gradients(hidden, weight, log_partition, upstream)
            upstream = upstream.unsqueeze(-1)
            grad_hidden -= upstream * weight[label].to(hidden.dtype)
            grad_weight.index_add_(0, label, upstream * hidden, alpha=-1)
        return grad_hidden, grad_weight.to(weight.dtype), None
