r"""The logarithm that Tsallis deformed and its entropy, for $\alpha = 1 + a$."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vastmax.compilation import uncompiled
from vastmax.differentiation import along


def log_alpha(log_p: Tensor, order: Tensor) -> Tensor:
    r"""Return $\log_\alpha p = (p^a - 1) / a$ from log p, without cancellation and at a = 0 too."""
    return log_p * exponential_moment(order * log_p, 0)


def log_inside(probability: Tensor) -> Tensor:
    """Return log p where p is above 0, and 0 elsewhere."""
    return probability.masked_fill(probability == 0, 1.0).log()


def tsallis_entropy(probability: Tensor, order: Tensor) -> Tensor:
    r"""Return Tsallis' entropy $H_\alpha(p) = -\langle p, \log_\alpha p \rangle / \alpha$ of rows.

    Args:
        probability: (N, V).
        order: a, (N, 1) or (1, 1).

    Returns:
        (N,).
    """
    a = order.to(probability.dtype)
    return -(probability * log_alpha(log_inside(probability), a) / (1 + a)).sum(-1)


def tsallis_entropy_slope(probability: Tensor, order: Tensor) -> Tensor:
    r"""Return $\partial H_\alpha(p) / \partial \alpha$ of rows; arguments and result as of `tsallis_entropy`."""
    a = order.to(probability.dtype)
    log_p = log_inside(probability)
    slope = log_p.square() * exponential_moment(a * log_p, 1) - log_alpha(log_p, a) / (1 + a)
    return -(probability * slope / (1 + a)).sum(-1)


def exponential_moment(value: Tensor, power: int) -> Tensor:
    r"""Return $M_k(z) = \int_0^1 t^k e^{tz} dt$ of z up to 0: $M_0 = (e^z - 1) / z$, and $M_k' = M_{k+1}$."""
    found: Tensor = _moment(value, power)  # type: ignore[no-untyped-call]
    return found


class _ExponentialMoment(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, power: int) -> Tensor:
        # Below this the moment is that of z = 0, and its square must not underflow.
        distance = (-value).clamp(min=torch.finfo(value.dtype).eps ** 2)
        shape = torch.full_like(distance, power + 1)
        moment: Tensor = torch.special.gammainc(shape, distance) * math.factorial(power) / distance ** (power + 1)
        return moment

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        value, ctx.power = inputs
        ctx.save_for_backward(value)
        ctx.save_for_forward(value)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return upstream * exponential_moment(value, ctx.power + 1), None

    @staticmethod
    @along
    def jvp(ctx: Any, saved: tuple[Tensor], direction: Tensor, _: None) -> Tensor:
        return direction * exponential_moment(saved[0], ctx.power + 1)


_moment = uncompiled(_ExponentialMoment.apply)
