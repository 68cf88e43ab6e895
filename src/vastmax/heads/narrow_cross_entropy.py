"""The cross-entropy of each row in a softmax of many classes and few features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vastmax.arithmetic import without_autocast
from vastmax.fused import Fused, Shapes, differentiable_by, keep, kept
from vastmax.kernels import implementation
from vastmax.scoring import plain as torchs
from vastmax.scoring.blocks import LinearScorer
from vastmax.scoring.partition import SplitPartition, total

NARROW = 16
"""Features up to which logits are sooner made again, from classes in the cache, than read from memory."""


def is_narrow(weight: Tensor) -> bool:
    """Return whether the logits of these class rows (K, d) are better not stored: on a CPU, with few features."""
    return weight.device.type == "cpu" and weight.shape[1] <= NARROW


def narrow_cross_entropy(hidden: Tensor, weight: Tensor, label: Tensor) -> Tensor:
    r"""Return the cross-entropy of each row, $\ell_r = \log \sum_c e^{h_r \cdot w_c} - h_r \cdot w_{y_r}$.

    Two passes over the classes, one for the loss and one for its gradient, each of which makes the logits of some
    classes at a time, in the nearest cache.

    Args:
        hidden: (N, d) in the dtype of the arithmetic.
        weight: (K, d) class rows.
        label: (N,) class ids.
    """
    loss: Tensor = _NarrowCrossEntropy.call(hidden, weight, label)
    return loss


class _NarrowCrossEntropy(Fused):
    arguments = "Tensor hidden, Tensor weight, Tensor label"

    @staticmethod
    def shapes(_: list[int], hidden: Tensor, *__: Any) -> Shapes:
        loss, *kept = (hidden.new_empty(hidden.shape[0]) for _ in range(4))
        return [loss], list(kept)

    @staticmethod
    def plain(hidden: Tensor, weight: Tensor, label: Tensor) -> Tensor:
        return -torchs.statistics(LinearScorer(hidden, weight, None, label)).log_prob

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, label: Tensor) -> Tensor:
        with without_autocast(hidden.device):
            label_logit, sums = implementation("narrow_partition", hidden, weight)(hidden, weight, label)
        partition = SplitPartition.of(label_logit, total(sums))
        keep(ctx, (hidden, weight, label), *partition)
        return -partition.log_prob

    @staticmethod
    @differentiable_by(plain)
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        (hidden, weight, label), split = kept(ctx)
        partition = SplitPartition(*split)
        of_others, of_label = upstream * (-partition.log_mass).exp(), upstream * torch.expm1(partition.log_prob)
        with without_autocast(hidden.device):
            gradients = implementation("narrow_partition_gradients", hidden, weight)
            grad_hidden, grad_weight = gradients(hidden, weight, label, partition.maximum, of_others)
            of_label = of_label.unsqueeze(-1)
            grad_hidden += of_label * weight[label].to(hidden.dtype)
            grad_weight.index_add_(0, label, of_label * hidden)
        return grad_hidden, grad_weight.to(weight.dtype), None
