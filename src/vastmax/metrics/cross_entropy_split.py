"""How much of a cross-entropy is the data's own entropy, and how much the model's distance from the data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vastmax.reduction import check_sample_weight
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
            target_probability: (..., V) the distributions P, in any precision; rounded sums are made 1 again.
            log_prob: (..., V) the model's log-probabilities, in nats; -inf for a class it gives none.
            sample_weight: (...) weight per row, such as how often a context occurs; 1 if omitted. A row of weight 0
                counts for nothing, its divergence infinite or not.

        Raises:
            TypeError: a tensor that is not floating.
            ValueError: shapes that differ, rows of P that do not sum to 1, NaN or +inf in `log_prob` or -inf
                throughout a row, a weight that is negative or not finite.
        """
        for name, values in (("target_probability", target_probability), ("log_prob", log_prob)):
            if not isinstance(values, Tensor) or not values.is_floating_point():
                kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
                raise TypeError(f"{name}: expected a floating-point tensor (..., V), got {kind}")
        check_distribution("target_probability", target_probability, log_prob.shape)
        wrong = log_prob.isnan() | log_prob.isposinf()
        if wrong.any():
            raise ValueError(f"log_prob: expected log-probabilities, got {log_prob[wrong][0].item()}")
        if log_prob.isneginf().all(-1).any():
            raise ValueError("log_prob: expected a finite log-probability in every row, got one of -inf alone")
        if sample_weight is None:
            sample_weight = log_prob.new_ones(log_prob.shape[:-1])
        check_sample_weight(sample_weight, log_prob.shape[:-1])

        counted = sample_weight > 0
        weight = sample_weight[counted].double()
        p, log_q = target_probability[counted].double(), log_prob[counted].double().log_softmax(-1)
        p = p / p.sum(-1, keepdim=True)
        # A class that P does not have counts for nothing, whatever its logarithms are.
        log_p, log_q = (logarithm.masked_fill(p == 0, 0.0) for logarithm in (p.log(), log_q))
        rows = torch.stack([-(p * log_q).sum(-1), -(p * log_p).sum(-1), (p * (log_p - log_q)).sum(-1)])
        self._totals += (weight * rows).sum(-1).cpu()
        self.weight += weight.sum().item()

    def compute(self) -> CrossEntropyParts:
        """Return the weighted means over all rows so far.

        Raises:
            ValueError: no row of a weight above 0 has been added.
        """
        if self.weight == 0:
            raise ValueError("CrossEntropySplit: expected at least one row before compute, got none")
        return CrossEntropyParts(*(self._totals / self.weight).tolist())
