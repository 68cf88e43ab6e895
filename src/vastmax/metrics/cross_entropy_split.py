"""How much of a cross-entropy is the data's own entropy, and how much the model's distance from the data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vastmax.functional.softmax import cross_entropy, entropy, kl_divergence
from vastmax.reduction import check_sample_weight, reduce_rows
from vastmax.validation import check_distribution


class CrossEntropyParts(NamedTuple):
    """Means over rows, in nats; the first is the sum of the others."""

    cross_entropy: float
    entropy: float
    kl_divergence: float


class CrossEntropySplit:
    r"""The cross-entropy of known distributions with a model's, and the two parts it is the sum of.

    $$H(P, Q) = -\sum_c P_c \log Q_c = H(P) + \text{KL}(P \,\|\, Q)$$

    No model has a cross-entropy below $H(P)$; what training can still gain is the divergence. P is known where the
    data are made up, where a teacher gives it, or where contexts repeat so often that their counts do.

    Example:
        >>> split = CrossEntropySplit()
        >>> split.update(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.25, 0.5]]).log())
        >>> [round(part, 4) for part in split.compute()]
        [1.3863, 0.6931, 0.6931]
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._totals = torch.zeros(3, dtype=torch.float64)

    @torch.no_grad()
    def update(self, target_probability: Tensor, log_prob: Tensor, *, sample_weight: Tensor | None = None) -> None:
        """Add rows.

        Args:
            target_probability: (..., V) the distributions P.
            log_prob: (..., V) the model's log-probabilities, in nats; -inf for a class it gives none.
            sample_weight: (...) weight per row, such as how often a context occurs; 1 if omitted.

        Raises:
            TypeError: a tensor that is not floating.
            ValueError: shapes that differ, rows of P that do not sum to 1, NaN in `log_prob`, a weight below 0.
        """
        for name, values in (("target_probability", target_probability), ("log_prob", log_prob)):
            if not isinstance(values, Tensor) or not values.is_floating_point():
                kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
                raise TypeError(f"{name}: expected a floating-point tensor (..., V), got {kind}")
        check_distribution("target_probability", target_probability, log_prob.shape)
        if log_prob.isnan().any():
            raise ValueError("log_prob: expected log-probabilities, got NaN")
        probability, log_q = target_probability.double(), log_prob.double()
        weight = torch.ones(log_q.shape[:-1], dtype=torch.float64, device=log_q.device)
        if sample_weight is not None:
            check_sample_weight(sample_weight, weight.shape)
            weight = sample_weight.double()
        parts = [
            cross_entropy(log_q, probability, sample_weight=weight, reduction="sum"),
            reduce_rows(entropy(probability.log()), weight=weight, reduction="sum"),
            kl_divergence(log_q, probability, sample_weight=weight, reduction="sum"),
        ]
        self._totals += torch.stack(parts).cpu()
        self.weight += weight.sum().item()

    def compute(self) -> CrossEntropyParts:
        """Return the weighted means over all rows so far.

        Raises:
            ValueError: no row of a weight above 0 has been added.
        """
        if self.weight == 0:
            raise ValueError("CrossEntropySplit: expected at least one row before compute, got none")
        return CrossEntropyParts(*(self._totals / self.weight).tolist())
