"""Temperature scaling: one number that makes a model as sure as it is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vastmax.calibration.held_out import (
    Fit,
    Scaling,
    check_fit_starts,
    check_foldable,
    held_out_hidden,
    held_out_logits,
    scaled,
)
from vastmax.functional import cross_entropy
from vastmax.heads.flat import FlatHead
from vastmax.scoring import linear_cross_entropy, linear_topk

DOUBLINGS = 20
"""Temperatures are looked for from 2^-20 to 2^20 times the spread of the logits."""


class TemperatureScaling(Scaling):
    r"""Logits divided by one temperature, the one of least nll on held-out rows.

    $$p_c = \text{softmax}(s / T)_c, \qquad
      T = \arg\min_T \; -\frac 1 N \sum_r \log \text{softmax}(s_r / T)_{y_r}$$

    The nll is convex in $1 / T$, so there is one minimum. The order of the classes, and so the accuracy, stays.
    `temperature`, 1 until fitted, is a buffer: part of the state dict, and of no optimizer.

    Args:
        device: where the temperature is.
        dtype: of the temperature.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017.

    Example:
        >>> p = torch.tensor([0.5, 0.3, 0.2])
        >>> target = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
        >>> scaling = TemperatureScaling()
        >>> fit = scaling.fit(3 * p.log().expand(10, 3), target)
        >>> round(scaling.temperature.item(), 4), fit.nll_after < fit.nll_before
        (3.0, True)
    """

    temperature: Tensor

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones((), device=device, dtype=dtype))

    def forward(self, logits: Tensor) -> Tensor:
        """Return logits (..., V) divided by the temperature."""
        return logits / self.temperature

    def fit(self, logits: Tensor, target: Tensor, *, ignore_index: int = -100) -> Fit:
        """Set the temperature to that of least nll for held-out logits (..., V) and target (...).

        Args:
            logits: (..., V) floating; -inf masks a class.
            target: (...) int64 class ids, or `ignore_index`.
            ignore_index: rows with this target take no part.

        Returns:
            The mean held-out nll with the temperature 1 and with the fitted one, in nats.

        Raises:
            TypeError: a tensor of the wrong dtype.
            ValueError: shapes that do not fit, no held-out row, a target out of range or masked, NaN; rows of which
                every target has the largest logit, as the nll then falls until the temperature is 0; logits that
                say nothing of the targets, as it then falls until the temperature is infinite; or a temperature
                past 2^20 times the spread of the logits, or below 2^-20 times that.
        """
        rows, label = held_out_logits(logits, target, ignore_index)
        _check_mistakes(rows.argmax(-1), label)
        return self._minimise(lambda inverse: cross_entropy(scaled(rows, inverse), label), rows)

    def fit_linear(
        self,
        hidden: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        ignore_index: int = -100,
    ) -> Fit:
        """Set the temperature to that of least nll for a linear layer, without an N x V tensor; see `fit`.

        About ten evaluations of the nll, each the price of an exact training step without the weight's gradient.

        Args:
            hidden: (..., d) held-out hidden rows.
            linear_weight: (V, d) class rows.
            target: (...) int64 class ids, or `ignore_index`.
            linear_bias: (V,) or None.
            ignore_index: rows with this target take no part.
        """
        rows, label = held_out_hidden(hidden, linear_weight, target, linear_bias, ignore_index)
        weight, bias = linear_weight.detach(), None if linear_bias is None else linear_bias.detach()
        _check_mistakes(linear_topk(rows, weight, 1, linear_bias=bias).indices.squeeze(-1), label)

        def nll(inverse: Tensor) -> Tensor:
            scaled_bias = None if bias is None else scaled(bias, inverse)
            return linear_cross_entropy(rows * inverse, weight, label, linear_bias=scaled_bias, ignore_index=None)

        return self._minimise(nll, rows)

    @torch.no_grad()
    def apply_to(self, layer: nn.Linear | FlatHead) -> None:
        """Divide a layer's weight and bias by the temperature, in place: its own softmax is then calibrated.

        Serving needs no other change. A weight that is tied to an input embedding changes there too.

        Raises:
            TypeError: neither a `nn.Linear` nor a flat head.
            ValueError: a head whose distribution is not the softmax of its weight and bias alone, as that of
                `NegativeSampling`.
        """
        check_foldable(layer)
        temperature = self.temperature.item()
        layer.weight.div_(temperature)
        if layer.bias is not None:
            layer.bias.div_(temperature)

    def _minimise(self, nll: Callable[[Tensor], Tensor], like: Tensor) -> Fit:
        """Set the temperature to where nll(1 / T) is least."""

        def point(inverse: float) -> _Point:
            variable = torch.tensor(inverse, dtype=like.dtype, device=like.device, requires_grad=True)
            with torch.enable_grad():
                loss = nll(variable)
            (slope,) = torch.autograd.grad(loss, variable)
            return _Point(inverse, loss.item(), slope.item())

        start = point(1.0)
        check_fit_starts(start.nll)
        low, high = _bracket(point, start.slope)
        # The nll is flat at its minimum: a step of sqrt(eps) changes it by eps.
        found = _root(point, low, high, math.sqrt(torch.finfo(like.dtype).eps))
        self.temperature.fill_(1 / found.inverse)
        return Fit(start.nll, found.nll)


class _Point(NamedTuple):
    """The nll at an inverse temperature, and its derivative there, which rises with the inverse temperature."""

    inverse: float
    nll: float
    slope: float


def _check_mistakes(prediction: Tensor, target: Tensor) -> None:
    if torch.equal(prediction, target):
        raise ValueError(
            f"target: expected a held-out row whose target has not the largest logit, got none in {len(target)}: "
            "the nll falls until the temperature is 0"
        )


def _bracket(point: Callable[[float], _Point], slope: float) -> tuple[_Point, _Point]:
    """Return two points, by a factor of two apart, between which the slope, `slope` at 1, changes its sign."""
    # At 0, where all classes are alike, it is how far the targets' logits are below the mean one. The nll is
    # convex: if it rises from there, it is least there.
    flat = point(0.0).slope
    if flat >= 0:
        raise ValueError(
            f"logits: expected those of the targets to be above the mean one on average, got {-flat:g} above: the "
            "logits say nothing of the targets, and the nll falls until the temperature is infinite"
        )
    # The slope grows by the variance of the logits, or by how far the largest are above the mean if those are many.
    growth = slope - flat
    spread = max(growth if growth > 1 else math.sqrt(max(growth, 0.0)), -flat)
    here = point(1 / spread)
    factor = 2.0 if here.slope < 0 else 0.5
    for _ in range(DOUBLINGS):
        there = point(here.inverse * factor)
        if factor > 1 and there.slope > 0:  # 0 may be an underflow, where the nll only falls
            return here, there
        if factor < 1 and there.slope < 0:
            return there, here
        here = there
    raise ValueError(
        f"logits: expected a temperature of least nll from 2^-{DOUBLINGS} to 2^{DOUBLINGS} times their spread, "
        f"about {spread:g}, got an nll that still falls at T = {1 / here.inverse:g}: "
        + (
            "nearly every target has the largest logit, or one as good as the largest"
            if factor > 1
            else "the logits say next to nothing of the targets"
        )
    )


def _root(point: Callable[[float], _Point], low: _Point, high: _Point, tolerance: float) -> _Point:
    """Return the point of slope 0 between two of opposite slopes, by the method of Ridders (1979).

    The bracket is at least halved each time, and the new point's error squared.
    """
    last = low
    while True:
        middle = point((low.inverse + high.inverse) / 2)
        if middle.slope == 0:
            return middle
        radius = math.sqrt(middle.slope**2 - low.slope * high.slope)
        found = point(middle.inverse - (middle.inverse - low.inverse) * middle.slope / radius)
        if found.slope == 0 or abs(found.inverse - last.inverse) <= tolerance * found.inverse:
            return found
        last = found
        points = sorted((low, middle, found, high))
        low = max(p for p in points if p.slope < 0)
        high = min(p for p in points if p.slope >= 0)
