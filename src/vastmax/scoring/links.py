"""What may stand between a linear layer's scores and its logits: increasing functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Link(Protocol):
    """An increasing function of a score that leaves -inf, a masked class, where it is."""

    def __call__(self, score: Tensor) -> Tensor:
        """Return the logits of scores; differentiable."""
        ...

    def slope(self, score: Tensor) -> Tensor:
        """Return the derivative of the logits at these scores."""
        ...


@dataclass(frozen=True)
class SoftCap:
    r"""$\text{softcap} \tanh(z / \text{softcap})$: logits bounded in size."""

    softcap: float

    def __call__(self, score: Tensor) -> Tensor:
        """Return the logits of scores."""
        return (self.softcap * torch.tanh(score / self.softcap)).masked_fill(score.isneginf(), -torch.inf)

    def slope(self, score: Tensor) -> Tensor:
        """Return the derivative of the logits at these scores."""
        return 1 - (score / self.softcap).tanh_().square_()


@dataclass(frozen=True)
class Sig:
    r"""$z + \log \sigma(z)$, the logits of the sigsoftmax."""

    def __call__(self, score: Tensor) -> Tensor:
        """Return the logits of scores."""
        return score + functional.logsigmoid(score)

    def slope(self, score: Tensor) -> Tensor:
        """Return the derivative of the logits at these scores."""
        return 1 + torch.sigmoid(-score)


@dataclass(frozen=True)
class LogSigmoid:
    r"""$\log \sigma(z)$: a class's probability by itself, for the softmax to normalise."""

    def __call__(self, score: Tensor) -> Tensor:
        """Return the logits of scores."""
        return functional.logsigmoid(score)

    def slope(self, score: Tensor) -> Tensor:
        """Return the derivative of the logits at these scores."""
        return torch.sigmoid(-score)
