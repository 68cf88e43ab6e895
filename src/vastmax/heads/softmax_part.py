"""One of the softmaxes whose product is a class's probability."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vastmax.differentiation import constant, outside_transforms
from vastmax.functional import sampled_softmax_loss
from vastmax.heads.narrow_cross_entropy import is_narrow, narrow_cross_entropy
from vastmax.reduction import CountedRows, reduce_rows
from vastmax.samplers import Sampler
from vastmax.scoring import chosen_logits, linear_cross_entropy
from vastmax.scoring.catching_up import catch_up


class SoftmaxPart(NamedTuple):
    """The softmax of a linear layer, and the rows of a batch that it has a say in.

    Attributes:
        rows: which rows of the batch.
        hidden: (M, d) what they bring to this softmax.
        weight: (K, d) its class rows.
        bias: (K,) or None.
        label: (M,) what each of the rows is to choose.
        sampler: what draws candidates among the K, None if there is nothing to sample.
    """

    rows: CountedRows
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    label: Tensor
    sampler: Sampler | None = None

    def exact_loss(self, *, sample_weight: Tensor | None = None, reduction: str = "none") -> Tensor:
        """The cross-entropy, of each row (M,) or reduced."""
        if self.bias is None and is_narrow(self.weight):
            loss = narrow_cross_entropy(self.hidden, self.weight, self.label)
            return reduce_rows(loss, reduction=reduction, weight=sample_weight)
        return linear_cross_entropy(
            self.hidden,
            self.weight,
            self.label,
            linear_bias=self.bias,
            sample_weight=sample_weight,
            reduction=reduction,
        )

    def sampled_loss(self, sampler: Sampler, k: int, *, sparse: bool, generator: torch.Generator | None) -> Tensor:
        """The cross-entropy of each row (M,) among its label and k candidates that all rows share."""
        with outside_transforms():
            candidates = sampler.sample(k, generator=generator)
            label = constant("target", self.label)
            label_log_count = sampler.log_expected_count(label, k)
        catch_up((self.weight, self.bias), lambda: torch.cat([label, candidates.ids]))
        target_logit, sampled_logit = chosen_logits(
            self.hidden,
            self.weight,
            self.label.unsqueeze(-1),
            candidates.ids,
            linear_bias=self.bias,
            sparse=sparse,
        )
        return sampled_softmax_loss(
            target_logit.squeeze(-1),
            sampled_logit,
            label_log_count,
            candidates.log_expected_count,
            reduction="none",
        )
