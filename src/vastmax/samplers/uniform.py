"""Every class equally likely."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vastmax.samplers.base import Sampler


class Uniform(Sampler):
    r"""The uniform distribution, $q_c = 1 / V$.

    Args:
        num_classes: $V$.
        unique: whether a set holds distinct classes (see `Sampler`).
        device: where to draw.

    Raises:
        TypeError, ValueError: `num_classes` that is no integer of at least 1.

    Example:
        >>> sampler = Uniform(10)
        >>> ids, log_expected_count, unique = sampler.sample(5)
        >>> ids.shape, log_expected_count.exp(), unique
        (torch.Size([5]), tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64), False)
    """

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        # Not torch.randint: it takes a 32-bit integer modulo V, which favours the first classes, by 5% at V = 2e8.
        return self._uniform(shape, generator).mul_(self.num_classes).long()  # (1 - 2^-53) V rounds to below V

    def _log_prob(self, ids: Tensor) -> Tensor:
        return torch.full(ids.shape, -math.log(self.num_classes), dtype=torch.float64, device=ids.device)

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"num_classes={self.num_classes}, unique={self.unique}"
