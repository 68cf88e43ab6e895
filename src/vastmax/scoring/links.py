"""What may stand between a linear layer's scores and its logits: increasing functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.compilation import Coded
from vastmax.validation import check_finite_number, shown


class Link(Protocol):
    """An increasing function of a score that leaves -inf, a masked class, where it is."""

    def __call__(self, score: Tensor) -> Tensor:
        """Return the logits of scores; differentiable."""
        ...

    def slope(self, score: Tensor) -> Tensor:
        """Return the derivative of the logits at these scores."""
        ...

    def inverse(self, logit: Tensor) -> Tensor:
        """Return the scores that have these logits."""
        ...


def check_link(link: Link | None) -> None:
    """Raise TypeError unless `link` is None or has all that a link has."""
    if link is None or (not isinstance(link, type) and callable(link) and hasattr(link, "slope")):
        return
    raise TypeError(
        "link: expected None or an increasing function of vastmax.scoring.links, such as SoftCap(30.0), "
        f"got {shown(link)} of type {type(link).__name__}"
    )


@dataclass(frozen=True)
class SoftCap(Coded):
    r"""$\text{softcap} \tanh(z / \text{softcap})$: logits bounded in size."""

    softcap: float

    def __call__(self, score: Tensor) -> Tensor:
        """Return the logits of scores."""
        return (self.softcap * torch.tanh(score / self.softcap)).masked_fill(score.isneginf(), -torch.inf)

    def slope(self, score: Tensor) -> Tensor:
        """Return the derivative of the logits at these scores."""
        return 1 - (score / self.softcap).tanh_().square_()

    def inverse(self, logit: Tensor) -> Tensor:
        """Return the scores that have these logits, infinite where their size reaches the cap."""
        return self.softcap * torch.atanh((logit / self.softcap).clamp(-1, 1))


def link_of(softcap: float | None, link: Link | None) -> Link | None:
    """Return the link that one of these names, None if neither does.

    Raises:
        TypeError, ValueError: both are given, or a cap that is not a finite number greater than 0.
    """
    if softcap is None:
        return link
    cap = SoftCap(check_finite_number("softcap", softcap, above=0.0))
    if link is not None:
        raise ValueError(f"link: expected none beside softcap={shown(softcap)}, got {shown(link)}")
    return cap


@dataclass(frozen=True)
class Sig(Coded):
    r"""$z + \log \sigma(z)$, the logits of the sigsoftmax."""

    def __call__(self, score: Tensor) -> Tensor:
        """Return the logits of scores."""
        return score + functional.logsigmoid(score)

    def slope(self, score: Tensor) -> Tensor:
        """Return the derivative of the logits at these scores."""
        return 1 + torch.sigmoid(-score)

    def inverse(self, logit: Tensor) -> Tensor:
        r"""Return the scores that have these logits.

        $u = e^z$ solves $u^2 = e^s (1 + u)$; the root is written so that neither end of the axis overflows.
        """
        half = -logit.abs() / 2  # e^{s/2} and e^{-s/2}, whichever is at most 1
        small = half.exp()
        rising = logit + torch.log((1 + (1 + 4 * small.square()).sqrt()) / 2)
        falling = logit / 2 + torch.log((small + (small.square() + 4).sqrt()) / 2)
        return torch.where(logit > 0, rising, falling)


@dataclass(frozen=True)
class LogSigmoid(Coded):
    r"""$\log \sigma(z)$: a class's probability by itself, for the softmax to normalise."""

    def __call__(self, score: Tensor) -> Tensor:
        """Return the logits of scores."""
        return functional.logsigmoid(score)

    def slope(self, score: Tensor) -> Tensor:
        """Return the derivative of the logits at these scores."""
        return torch.sigmoid(-score)

    def inverse(self, logit: Tensor) -> Tensor:
        r"""Return $s - \log(1 - e^s)$ of logits below 0; 0, where it is infinite, counts as just below."""
        logit = logit.clamp(max=-torch.finfo(logit.dtype).eps)
        return logit - torch.log(-torch.expm1(logit))
