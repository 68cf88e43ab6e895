"""Classes as frequent as they were counted, raised to a power."""

import math
from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vastmax.samplers.base import Sampler
from vastmax.validation import check_counts, check_finite_number


class Unigram(Sampler):
    r"""The distribution of observed class counts $n$, flattened by a power (Mikolov et al., 2013).

    $$q_c = \frac{n_c^{\alpha}}{\sum_j n_j^{\alpha}}.$$

    A class never counted is never drawn, whatever the power: $q_c = 0$ where $n_c = 0$, at $\alpha = 0$ too,
    which is uniform over the classes counted. Built in O(V); a draw is a binary search, O(log V).

    Args:
        counts: (V,) counts, 0 or greater, integers or floats, not all 0: a tensor, whose device the tables are
            then on, or anything numpy makes an array of.
        power: $\alpha$, 0 or greater.
        unique: whether a set holds distinct classes (see `Sampler`).

    Raises:
        TypeError, ValueError: `counts` or `power` that are not as above.

    Example:
        >>> Unigram([8, 1, 0, 1], power=1.0).log_prob(torch.arange(4)).exp()
        tensor([0.8000, 0.1000, 0.0000, 0.1000], dtype=torch.float64)
    """

    _log_q: Tensor
    _cumulative_q: Tensor

    def __init__(self, counts: Tensor | ArrayLike, power: float = 0.75, *, unique: bool = False) -> None:
        count = check_counts("counts", counts)
        super().__init__(len(count), unique=unique, device=count.device)
        self.power = check_finite_number("power", power, at_least=0.0)

        count = count.cpu()  # adds up in order there, so that a class of no count has exactly no width
        log_count = count.log()
        log_weight = self.power * (log_count - log_count.max())
        log_q = log_weight.masked_fill(count == 0, -math.inf).log_softmax(0)
        cumulative_q = log_q.exp().cumsum(0)
        self._support_size = int((log_q > -math.inf).sum())
        self._register_table("_log_q", log_q.to(self.device))
        # Ends at exactly 1, which no uniform reaches: a search never runs past the last class of positive q.
        self._register_table("_cumulative_q", (cumulative_q / cumulative_q[-1]).to(self.device))

    @property
    def support_size(self) -> int:
        """The number of classes with positive q."""
        return self._support_size

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        # right=True: the first class whose cumulative q is greater than u, so never one of no width.
        return torch.searchsorted(self._cumulative_q, self._uniform(shape, generator), right=True)

    def _log_prob(self, ids: Tensor) -> Tensor:
        return self._log_q[ids]

    def extra_repr(self) -> str:
        """Return the constructor's arguments, the counts as their number."""
        return f"num_classes={self.num_classes}, power={self.power:g}, unique={self.unique}"
