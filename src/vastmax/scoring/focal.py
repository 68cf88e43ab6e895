"""The focal term of a class: its cross-entropy, turned down where the class is probable already."""

from __future__ import annotations

import torch
from torch import Tensor

NEAR_CERTAIN = 1e-4
"""Below this cross-entropy, in nats, a series says what a power of a difference near 0 cannot."""


def focal(log_prob: Tensor, gamma: float) -> Tensor:
    r"""Return $(1 - p)^\gamma (-\log p)$ of log-probabilities, with a finite gradient from p = 0 to 1 at any gamma.

    With $u = -\log p$ it is $(1 - e^{-u})^\gamma u$, which near 0 is $u^{1 + \gamma} (1 - u / 2 + u^2 / 6)^\gamma$:
    there the gradient of the first form would be infinity times 0. At u = 0 it is 0, with all of its derivatives by
    logits, of which those of the power would be infinite.
    """
    u = -log_prob
    if gamma == 0:
        return u
    u = u.clamp(min=0)  # a log-probability rounded to above 0
    certain, near, impossible = u == 0, u < NEAR_CERTAIN, u.isposinf()
    small = u.where(near & ~certain, torch.full_like(u, NEAR_CERTAIN))
    large = u.where(~near & ~impossible, torch.ones_like(u))
    series = small.pow(1 + gamma) * (1 - small / 2 + small.square() / 6).pow(gamma)
    power = torch.where(impossible, u, (-torch.expm1(-large)).pow(gamma) * large)
    return torch.where(near, series.masked_fill(certain, 0.0), power)
