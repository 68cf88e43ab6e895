"""How many samples an accuracy takes, read off errors that were measured at a few numbers of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STEEPEST = 1.0
"""No error falls faster than 1 / k: a standard deviation falls as its root, a bias at best as itself."""

FLATTEST = 0.1
"""A bias that falls more slowly than k to the power -0.1, by a fifth in a decade, is taken for one that stays."""


FARTHEST = 1000
"""No extrapolation goes further than to so many times the largest k measured."""


@dataclass(frozen=True)
class Implied:
    """A number of samples, and how it is known.

    Attributes:
        num_samples: k; None if no number reaches the accuracy.
        how: `"at most"`, the smallest k measured is accurate enough; `"between"`, interpolated; `"beyond"`,
            extrapolated; `"more than"`, too far off for that; `"never"`, the bias stays above the accuracy, or the
            estimates do not point the exact gradient's way.
        bias: at the largest k measured, relative to the gradient.
    """

    num_samples: int | None
    how: str
    bias: float


def implied_samples(
    curve: Sequence[tuple[int, Mapping[str, float]]], accuracy: float, *, limit: int | None = None
) -> Implied:
    r"""Return the number of samples from which on the root-mean-square error is at most `accuracy`.

    Between two measured k the error is a straight line in logarithms, no steeper than 1 / k. Past the last, its
    variance falls as 1 / k:

    $$k = K \frac{\text{error}_K^2 - b^2}{\text{accuracy}^2 - b^2}$$

    with b the bias at K if it stays, and 0 if it falls too. A bias stays that, less its resolution, is
    hardly below the one at the last k but one. One that falls is taken to fall no slower than the standard
    deviation.

    Args:
        curve: pairs of k, rising, and the figures of `GradientErrors` there.
        accuracy: greater than 0.
        limit: the k at which the error is 0, if there is one.

    Example:
        >>> figures = {"bias": 0.0, "bias_resolution": 0.01}
        >>> implied_samples([(10, {**figures, "error": 1.0}), (1000, {**figures, "error": 0.1})], 0.5)
        Implied(num_samples=40, how='between', bias=0.0)
    """
    last_k, last = curve[-1]
    short = [i for i, (_, figures) in enumerate(curve) if figures["error"] > accuracy]
    if not short:
        return Implied(curve[0][0], "at most", last["bias"])
    k, error = curve[short[-1]][0], curve[short[-1]][1]["error"]
    if k < last_k:
        next_k, next_figures = curve[short[-1] + 1]
        share = next_figures["error"] / error
        slope = STEEPEST if share == 0 else min(STEEPEST, -math.log(share) / math.log(next_k / k))
        return Implied(rounded(min(next_k, k * (error / accuracy) ** (1 / slope))), "between", last["bias"])
    staying = last["bias"] if bias_stays(curve) else 0.0
    if staying >= accuracy or math.isinf(error):
        return Implied(None, "never", last["bias"])
    needed = rounded(k * (error**2 - staying**2) / (accuracy**2 - staying**2))
    if needed > FARTHEST * k and (limit is None or limit > FARTHEST * k):
        return Implied(FARTHEST * k, "more than", last["bias"])
    return Implied(needed if limit is None else min(needed, limit), "beyond", last["bias"])


def bias_stays(curve: Sequence[tuple[int, Mapping[str, float]]]) -> bool:
    """Whether the last bias, and what surely is of it, hardly fell from the last but one."""
    if len(curve) < 2:
        return False
    (before_k, before), (k, last) = curve[-2:]
    surely = last["bias"] - last["bias_resolution"]
    return surely > before["bias"] * math.pow(before_k / k, FLATTEST)


def unit_gain(figures: Mapping[str, float]) -> dict[str, float]:
    r"""Return the figures of an estimate rescaled to be, in the mean, as long along $g^*$ as $g^*$ is.

    $$\frac{\text{error}^2 + 2 c - 1}{c^2} - 1, \qquad
      c = \text{gain} = \frac{\mathbb{E}\, g \cdot g^*}{\|g^*\|^2},$$

    is the square of the error then. An optimizer that divides by the gradient's size does the rescaling. Of an
    estimate that does not point the way of $g^*$ the error is infinite.

    Example:
        >>> halved = {"error": 0.5, "std": 0.0, "bias": 0.5, "bias_resolution": 0.0, "gain": 0.5}
        >>> unit_gain(halved)["error"]
        0.0
    """
    gain = figures["gain"]
    if gain <= 0:
        return {"error": math.inf, "bias": math.inf, "bias_resolution": math.inf}
    squared = max(0.0, ((figures["error"] ** 2 + 2 * gain - 1) / gain**2) - 1)
    return {
        "error": math.sqrt(squared),
        "bias": math.sqrt(max(0.0, squared - (figures["std"] / gain) ** 2)),
        "bias_resolution": figures["bias_resolution"] / gain,
    }


def rounded(k: float) -> int:
    """The next whole number of samples, but for rounding errors."""
    return max(1, math.ceil(k * (1 - 1e-9)))
