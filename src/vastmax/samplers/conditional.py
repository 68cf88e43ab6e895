"""Noise distributions that follow the batch or the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from vastmax.samplers.base import Sampler


class ConditionalSampler(Sampler):
    """A noise distribution $q(c | h)$: `given` a batch it returns the sampler that draws for it.

    A head calls `given` at every step; nothing else of a conditional sampler can be used by itself.
    """

    conditional = True

    @abstractmethod
    def given(
        self,
        hidden: Tensor,
        target: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        *,
        shared: bool,
    ) -> Sampler:
        """Return the sampler of one batch."""

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> NoReturn:
        self._refuse()

    def _log_prob(self, ids: Tensor) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: expected a batch, whose rows q depends on: "
            "call given(hidden, target, linear_weight, linear_bias, shared=...) and sample from what it returns"
        )
