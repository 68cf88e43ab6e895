"""What every head offers, and what the flat ones share: one row of weight per class."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vastmax.reduction import REDUCTIONS, check_sample_weight
from vastmax.scoring import linear_cross_entropy, linear_log_partition, linear_logits, linear_topk
from vastmax.scoring.top import TopK
from vastmax.validation import (
    check_choice,
    check_finite,
    check_hidden,
    check_per_class,
    check_positive_int,
    check_target,
)


class Head(nn.Module, ABC):
    """An output layer: a loss to train with, and exact probabilities whatever that loss is.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        ignore_index: rows with this target take no part in a loss.
        reduction: `"mean"`, `"sum"` or `"none"`.
    """

    def __init__(self, in_features: int, num_classes: int, *, ignore_index: int, reduction: str) -> None:
        super().__init__()
        self.in_features = check_positive_int("in_features", in_features)
        self.num_classes = check_positive_int("num_classes", num_classes)
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise TypeError(f"ignore_index: expected an integer, got {ignore_index!r}")
        self.ignore_index = ignore_index
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)

    @abstractmethod
    def forward(self, hidden: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Return the training loss of hidden (..., d) and target (...): a scalar or (...), in nats."""

    @abstractmethod
    def nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return -log p(target) exactly, per row (...), in nats; 0 in rows whose target is `ignore_index`."""

    @abstractmethod
    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the exact log-probability of every class: (..., V), in nats."""

    @abstractmethod
    def topk(self, hidden: Tensor, k: int) -> TopK:
        """Return the k most probable classes of each row, without an N x V tensor.

        Returns:
            `(values, indices)`, each (..., k): exact log-probabilities, falling, and class ids.
        """

    @abstractmethod
    def log_partition(self, hidden: Tensor) -> Tensor:
        """Return log Z of each row (...): what the head's log-probabilities fall short of normalisation by."""


class FlatHead(Head):
    """A head with the parameters of `nn.Linear(in_features, num_classes)`, under the same names.

    `linear.load_state_dict(head.state_dict())` and the reverse both work. A subclass calls `reset_parameters`
    at the end of its constructor, when all that a start may depend on is there.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        bias: whether each class has a bias.
        ignore_index: rows with this target take no part in a loss.
        reduction: `"mean"`, `"sum"` or `"none"`.
        device: where the parameters are.
        dtype: of the parameters.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = True,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_classes, ignore_index=ignore_index, reduction=reduction)
        self.weight = nn.Parameter(torch.empty(num_classes, in_features, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Draw the parameters as `nn.Linear` does."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @torch.no_grad()
    def start_at(self, log_prob: Tensor) -> None:
        """Set the bias so that, where hidden . weight is 0, the classes have these log-probabilities.

        A model that starts at the classes' frequencies need not spend its first thousand steps learning them.

        Args:
            log_prob: (V,) finite, in nats.

        Raises:
            ValueError: a head without bias, or a `log_prob` of another shape or not finite.
        """
        if self.bias is None:
            raise ValueError("start_at: expected a head with bias=True, got one with bias=False")
        check_per_class("log_prob", log_prob, self.num_classes)
        check_finite("log_prob", log_prob)
        offset = self.log_prob_offset()
        if offset is not None:
            # A class whose offset is -inf has probability 0 whatever its bias is.
            log_prob = log_prob - offset.masked_fill(offset.isneginf(), 0.0)
        self.bias.copy_(log_prob)

    def log_prob_offset(self) -> Tensor | None:
        """What to add to each class's logit to make it a log-probability up to a constant of the row: (V,)."""
        return None

    def exact_bias(self) -> Tensor | None:
        """The bias of the linear layer whose softmax is this head's distribution, in at least float32."""
        offset = self.log_prob_offset()
        if offset is None:
            return self.bias
        offset = offset.to(torch.promote_types(self.weight.dtype, torch.float32))
        return offset if self.bias is None else self.bias + offset

    def nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return -log p(target) exactly, per row (...), in nats; 0 in rows whose target is `ignore_index`."""
        self.check(hidden, target)
        return linear_cross_entropy(
            hidden,
            self.weight,
            target,
            linear_bias=self.exact_bias(),
            ignore_index=self.ignore_index,
            reduction="none",
        )

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the exact log-probability of every class: (..., V), in nats, in at least float32."""
        self.check(hidden)
        return linear_logits(hidden, self.weight, linear_bias=self.exact_bias()).log_softmax(-1)

    def topk(self, hidden: Tensor, k: int) -> TopK:
        """Return the k most probable classes of each row, without an N x V tensor.

        Returns:
            `(values, indices)`, each (..., k): exact log-probabilities, falling, and class ids.
        """
        self.check(hidden)
        return linear_topk(hidden, self.weight, k, linear_bias=self.exact_bias())

    def log_partition(self, hidden: Tensor) -> Tensor:
        """Return log Z of each row (...): what the head's log-probabilities fall short of normalisation by."""
        self.check(hidden)
        return linear_log_partition(hidden, self.weight, linear_bias=self.exact_bias()).log_partition

    def check(self, hidden: Tensor, target: Tensor | None = None, sample_weight: Tensor | None = None) -> None:
        """Raise TypeError or ValueError, naming the argument, unless the arguments fit this head."""
        check_hidden("hidden", hidden, self.in_features)
        counted = None
        if target is not None:
            check_target(target, hidden.shape[:-1], self.num_classes, self.ignore_index)
            counted = target != self.ignore_index
        if sample_weight is not None:
            check_sample_weight(sample_weight, hidden.shape[:-1])
        check_finite("hidden", hidden, counted)

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}, bias={self.bias is not None}"
