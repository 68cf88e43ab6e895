"""One sigmoid per class: labels that are true or not, each by itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vastmax import checking
from vastmax.checking import require
from vastmax.heads.flat import FlatHead
from vastmax.heads.targets import shares
from vastmax.reduction import CountedRows, reduce_rows
from vastmax.scoring import linear_logits, linear_loss
from vastmax.scoring.links import LogSigmoid
from vastmax.validation import check_all, check_finite


class OneVsAll(FlatHead):
    r"""A logistic regression per class, all of them trained on every row, in memory bounded by one block of logits.

    $$\ell = \sum_c v_c \left(\log(1 + e^{s_c}) - y_c s_c\right), \qquad s_c = \frac{h \cdot w_c + b_c}{T}$$

    For targets of several labels, any number of which may be true: $y_c$ is 1 for each class that a target of
    (..., T) class ids names, or what `target_weight` says; or a floating target (..., V) has a $y_c$ in [0, 1] for
    each class. `label_log_prob` is each label's own probability. For a target of one class per row, `nll`,
    `log_prob` and `topk` are of the sigmoids' shares,

    $$p_c = \frac{\sigma(s_c)}{\sum_j \sigma(s_j)},$$

    where the training loss has its optimum at $\sigma(s_c) = p_c$. The biases start at $-\log (V - 1)$: one label a
    row, in expectation. Label by label, the classes that are not true are many and easy: a first loss of about
    $1 + \log V$ rather than $V \log 2$.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        **options: those of `FlatHead`; the mean over rows divides by the rows' `sample_weight` alone.

    Example:
        >>> head = OneVsAll(16, 1000)
        >>> hidden, labels = torch.randn(2, 16), torch.tensor([[1, 2, 3], [999, -100, -100]])
        >>> y = torch.zeros(2, 1000)
        >>> y[0, [1, 2, 3]] = y[1, 999] = 1
        >>> logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
        >>> wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum") / 2
        >>> torch.allclose(head(hidden, labels), wanted)
        True
    """

    link = LogSigmoid()

    def __init__(self, in_features: int, num_classes: int, **options: Any) -> None:
        super().__init__(in_features, num_classes, **options)
        self.reset_parameters()

    @property
    def compiles(self) -> bool:
        """Not in one graph: its loss of logits is made of rows in blocks, by a function that no graph can name."""
        return False

    def reset_parameters(self) -> None:
        """Draw the weight as `nn.Linear` does, and start the biases at one true label a row."""
        super().reset_parameters()
        if self.bias is not None:
            nn.init.constant_(self.bias, -math.log(max(self.num_classes - 1, 1)))

    def forward(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        target_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the sum of the classes' logistic losses: a scalar or (...), in nats.

        Args:
            hidden: (..., d).
            target: (...) or (..., T) int64 class ids or `ignore_index`, or (..., V) labels in [0, 1]. A row of
                `ignore_index` takes no part if its target is one class, and has no true label if it is several.
            sample_weight: (...) weight per row; the mean divides by their sum.
            target_weight: (..., T) how true each of several labels is, in [0, 1].

        Raises:
            TypeError: a tensor of the wrong dtype.
            ValueError: shapes that do not fit, a target out of range, a label named twice in a row without shares,
                integers that look like a 0/1 matrix, NaN or infinite hidden.
        """
        self.check(hidden, target, sample_weight, target_weight)
        if target.is_floating_point():
            rows = [target]
            ignored = torch.zeros(target.shape[:-1], dtype=torch.bool, device=target.device)
        else:
            several = target.ndim == hidden.ndim
            classes, counted, _ = shares(hidden, target, self.ignore_index, target_weight)
            truth = counted.to(hidden.dtype)
            if target_weight is not None:
                truth = _largest_of_each_class(target_weight.masked_fill(~counted, 0.0), classes)
            rows = [truth, classes]
            ignored = torch.zeros_like(counted[..., 0]) if several else ~counted[..., 0]
        counted_rows = CountedRows(~ignored)
        found = linear_loss(
            self._logistic,
            self.divide(counted_rows.of(hidden)),
            self.weight,
            linear_bias=self.exact_bias(),
            rows=[counted_rows.of(x) for x in rows],
        )
        loss = counted_rows.in_their_places(found)
        return reduce_rows(loss, reduction=self.reduction, weight=sample_weight, ignored=ignored)

    def check(
        self,
        hidden: Tensor,
        target: Tensor | None = None,
        sample_weight: Tensor | None = None,
        target_weight: Tensor | None = None,
    ) -> None:
        """Raise TypeError or ValueError, naming the argument, unless the arguments fit this head."""
        super().check(hidden, target, sample_weight, target_weight)
        if target is not None and target.ndim == hidden.ndim:  # a row without a true label counts as any other
            check_finite("hidden", hidden)
        if target_weight is not None:
            check_all("target_weight", "labels in [0, 1]", target_weight, target_weight <= 1)

    def _logistic(self, logits: Tensor, truth: Tensor, classes: Tensor | None = None) -> Tensor:
        """The loss (n,) of logits (n, V) and how true their labels are: those of `classes`, or all."""
        truth = truth.to(logits.dtype)
        named = logits if classes is None else logits.gather(-1, classes)
        against, supported = functional.softplus(logits), truth * named.masked_fill(truth == 0, 0.0)
        if self.class_weight is None:
            return against.sum(-1) - supported.sum(-1)
        weight = self.class_weight.to(logits.dtype)
        return against @ weight - (supported * (weight if classes is None else weight[classes])).sum(-1)

    def _check_probabilities(self, target: Tensor, rows: torch.Size) -> None:
        shape = (*rows, self.num_classes)
        if target.shape != shape:
            raise ValueError(f"target: expected shape {shape}, how true each label is, got {tuple(target.shape)}")
        if target.numel() == 0 or checking.are_off():
            return

        def error() -> ValueError:
            outside = ~((target >= 0) & (target <= 1))
            return ValueError(f"target: expected labels in [0, 1], got {target[outside][0].item():g}")

        # Without N x V truth values, as nearly always.
        require((target.amin() >= 0) & (target.amax() <= 1), "target: expected labels in [0, 1]", error)

    def label_log_prob(self, hidden: Tensor) -> Tensor:
        """Return the log-probability that each label is true, by itself: (..., V), in nats."""
        self.check(hidden)
        return functional.logsigmoid(linear_logits(self.divide(hidden), self.weight, linear_bias=self.exact_bias()))


def _largest_of_each_class(truth: Tensor, classes: Tensor) -> Tensor:
    """How true the named classes (..., T) are, 0 where one is named again: it is as true as its largest share."""
    by_share = truth.argsort(stable=True, dim=-1, descending=True)
    places = by_share.gather(-1, classes.gather(-1, by_share).argsort(stable=True, dim=-1))
    ids = classes.gather(-1, places)
    again = functional.pad(ids[..., 1:] == ids[..., :-1], (1, 0))
    return truth.masked_fill(torch.zeros_like(again).scatter(-1, places, again), 0.0)
