"""Zipf's law for classes sorted by falling frequency."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vastmax.samplers.base import Sampler


class LogUniform(Sampler):
    r"""The log-uniform (Zipfian) distribution, for class ids sorted by falling frequency.

    $$q_c = \frac{\log(c + 2) - \log(c + 1)}{\log(V + 1)},$$

    drawn as $c = \lfloor e^{u \log(V + 1)} \rfloor - 1$ with $u$ uniform on $[0, 1)$.

    Args:
        num_classes: $V$.
        unique: whether a set holds distinct classes (see `Sampler`).
        device: where to draw.

    Raises:
        TypeError, ValueError: `num_classes` that is no integer of at least 1.

    Example:
        >>> LogUniform(3).log_prob(torch.arange(3)).exp()
        tensor([0.5000, 0.2925, 0.2075], dtype=torch.float64)
    """

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        log_total = math.log1p(self.num_classes)
        ids = self._uniform(shape, generator).mul_(log_total).expm1_().long()
        return ids.clamp_(max=self.num_classes - 1)  # the greatest u may round up to V

    def _log_prob(self, ids: Tensor) -> Tensor:
        log_total = math.log1p(self.num_classes)
        return (ids.double() + 1).reciprocal_().log1p_().log_().sub_(math.log(log_total))

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"num_classes={self.num_classes}, unique={self.unique}"
