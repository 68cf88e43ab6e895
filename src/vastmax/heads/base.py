"""What every head offers, and what the flat ones share: one row of weight per class."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vastmax.reduction import REDUCTIONS, check_sample_weight, reduce_rows
from vastmax.scoring import linear_cross_entropy, linear_log_partition, linear_logits, linear_topk
from vastmax.scoring.top import TopK
from vastmax.validation import (
    check_choice,
    check_distribution,
    check_finite,
    check_hidden,
    check_per_class,
    check_positive_int,
    check_target,
)


class Head(nn.Module, ABC):
    r"""An output layer: a loss to train with, and exact probabilities whatever that loss is.

    A target is one true class per row, (...); or several, (..., T), of which each has an equal share of the row
    and `ignore_index` fills the places left over,

    $$\ell_r = \frac{1}{T_r} \sum_t \ell(h_r, y_{rt});$$

    or, in heads that train with the exact cross-entropy, the classes' probabilities, floating (..., V),

    $$\ell_r = -\sum_c t_{rc} \log p_{rc}.$$

    A subclass states `_row_nll`, and `_row_loss` if it trains with another loss than that.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        ignore_index: rows with this target take no part in a loss.
        reduction: `"mean"`, `"sum"` or `"none"`.
    """

    takes_probabilities = True
    """Whether a target may be the probabilities of all classes."""

    def __init__(self, in_features: int, num_classes: int, *, ignore_index: int, reduction: str) -> None:
        super().__init__()
        self.in_features = check_positive_int("in_features", in_features)
        self.num_classes = check_positive_int("num_classes", num_classes)
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise TypeError(f"ignore_index: expected an integer, got {ignore_index!r}")
        self.ignore_index = ignore_index
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)

    def forward(self, hidden: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Return the training loss of hidden (..., d) and target: a scalar or (...), in nats.

        Args:
            hidden: (..., d).
            target: (...) or (..., T) int64 class ids or `ignore_index`, or (..., V) probabilities.
            sample_weight: (...) weight per row; the mean divides by their sum.

        Raises:
            TypeError: a tensor of the wrong dtype, or probabilities in a head that cannot train on them.
            ValueError: shapes that do not fit, a target out of range, NaN or infinite hidden.
        """
        self.check(hidden, target, sample_weight)
        return self._over_rows(self._row_loss, hidden, target, self.reduction, sample_weight)

    def nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return -log p(target) exactly, per row (...), in nats; 0 in rows whose target is `ignore_index`."""
        self.check(hidden, target)
        return self._over_rows(self._row_nll, hidden, target, "none")

    @abstractmethod
    def _row_nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return -log p(target), (N,), of hidden (N, d) and one class each, target (N,); differentiable."""

    def _row_loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return the training loss (N,) of hidden (N, d) and one true class each, target (N,)."""
        return self._row_nll(hidden, target)

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

    @abstractmethod
    def start_at(self, log_prob: Tensor) -> None:
        """Set the biases so that, where hidden is 0, the classes have these log-probabilities (V,)."""

    def _over_rows(
        self,
        row_loss: Callable[[Tensor, Tensor], Tensor],
        hidden: Tensor,
        target: Tensor,
        reduction: str,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Apply a loss of rows with one true class each to what counts of any target, and reduce it."""
        if target.is_floating_point():
            log_prob = self.log_prob(hidden)
            loss = -(target.to(log_prob.dtype) * log_prob).masked_fill(target == 0, 0.0).sum(-1)
            return reduce_rows(loss, reduction=reduction, weight=sample_weight)
        counted = target != self.ignore_index
        each = hidden.unsqueeze(-2).expand(*target.shape, -1) if target.ndim == hidden.ndim else hidden
        found = row_loss(each[counted], target[counted])
        loss = found.new_zeros(target.shape).masked_scatter(counted, found)
        if target.ndim == hidden.ndim:
            loss = loss.sum(-1) / counted.sum(-1).clamp(min=1)
            counted = counted.any(-1)
        return reduce_rows(loss, reduction=reduction, weight=sample_weight, ignored=~counted)

    def check(self, hidden: Tensor, target: Tensor | None = None, sample_weight: Tensor | None = None) -> None:
        """Raise TypeError or ValueError, naming the argument, unless the arguments fit this head."""
        check_hidden("hidden", hidden, self.in_features)
        rows, counted = hidden.shape[:-1], None
        if target is not None:
            several = isinstance(target, Tensor) and target.ndim == hidden.ndim
            shape = (*rows, target.shape[-1]) if several else rows
            if several and target.is_floating_point():
                self._check_probabilities(target, rows)
            else:
                check_target(target, shape, self.num_classes, self.ignore_index)
                counted = target != self.ignore_index
                counted = counted.any(-1) if several else counted
        if sample_weight is not None:
            check_sample_weight(sample_weight, rows)
        check_finite("hidden", hidden, counted)

    def _check_probabilities(self, target: Tensor, rows: torch.Size) -> None:
        if not self.takes_probabilities:
            raise TypeError(
                f"target: expected int64 class ids, got {target.dtype} probabilities, which {type(self).__name__} "
                "cannot train on: its loss scores the true classes and sampled ones, not all"
            )
        check_distribution("target", target, (*rows, self.num_classes))

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}"


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

    @abstractmethod
    def forward(self, hidden: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Return the training loss: what a flat head differs from another by; see `Head`."""

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

    def _row_nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        bias = self.exact_bias()
        return linear_cross_entropy(hidden, self.weight, target, linear_bias=bias, reduction="none")

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

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        return f"{super().extra_repr()}, bias={self.bias is not None}"
