"""How fast noise-contrastive estimation finds an unnormalised Gaussian, by k, beside maximum likelihood.

The experiment of Gutmann and Hyvarinen, 2010: Gaussians of mean 0 and random covariance, whose precision and log Z
are estimated from n points. Maximum likelihood knows how a Gaussian is normalised; NCE learns log Z as a parameter.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from vastmax.density import NCE, UnnormalizedGaussian, fit, gaussian_noise, uniform_noise
from vastmax.study.surroundings import surroundings
from vastmax.validation import check_choice, check_positive_int, make_plain, shown

QUANTITIES = ("precision", "log_partition")
CONDITION = 10.0
"""The largest condition number of a covariance."""


def standard_normal(x: Tensor) -> Distribution:
    """The standard normal distribution of points like x."""
    return Independent(Normal(x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])), 1)


NOISES: dict[str, Callable[[Tensor], Distribution]] = {
    "standard-normal": standard_normal,
    "gaussian": gaussian_noise,
    "uniform": uniform_noise,
}
"""By name: one that knows nothing of the data, the Gaussian that is fitted to them, and a box around them."""


@dataclass(frozen=True)
class DensityOptions:
    """What is measured, and how often.

    Attributes:
        features: dimensions d of the Gaussians.
        sample_sizes: rising numbers of points n, more than the model has parameters.
        ratios: rising numbers k of points of noise per point of data.
        repeats: Gaussians, each with data and noise of its own.
        noise: a name out of `NOISES`.
        seed: of all draws.

    Raises:
        TypeError, ValueError: an option out of its bounds.
    """

    features: int = 5
    sample_sizes: tuple[int, ...] = (100, 200, 500, 1000)
    ratios: tuple[int, ...] = (1, 10, 100)
    repeats: int = 40
    noise: str = "standard-normal"
    seed: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        check_positive_int("features", self.features)
        check_rising("sample_sizes", self.sample_sizes)
        check_rising("ratios", self.ratios)
        check_positive_int("repeats", self.repeats)
        check_choice("noise", self.noise, tuple(NOISES))
        check_seed(self.seed)
        parameters = 1 + self.features * (self.features + 1) // 2
        if self.sample_sizes[0] <= parameters:
            raise ValueError(
                f"sample_sizes: expected more than {parameters}, the numbers that describe a precision of "
                f"{self.features} features and log Z, got {self.sample_sizes[0]}"
            )


def check_rising(option: str, numbers: tuple[int, ...]) -> None:
    """Raise unless `numbers` are integers of at least 1, each greater than the one before."""
    for number in numbers:
        check_positive_int(option, number)
    if not numbers or list(numbers) != sorted(set(numbers)):
        raise ValueError(f"{option}: expected rising numbers, got {shown(numbers)}")


def check_seed(seed: object) -> None:
    """Raise ValueError unless `seed` is an integer that every generator can be seeded by."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an integer of at least 0 and less than 2**63, got {shown(seed)}")


class Estimate(NamedTuple):
    """A precision (d, d) and its log Z, true or estimated, and what the estimate took."""

    precision: Tensor
    log_partition: Tensor
    seconds: float = 0.0
    converged: bool = True


def gaussian_estimate(covariance: Tensor) -> Estimate:
    """Return the precision of a covariance, and log Z = log sqrt(det 2 pi covariance)."""
    return Estimate(covariance.inverse(), 0.5 * (2 * math.pi * covariance).logdet())


def draw_covariance(features: int) -> Tensor:
    """Draw a covariance in random directions, its variances log-uniform between 1 / sqrt(10) and sqrt(10)."""
    directions = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64)).Q
    variances = CONDITION ** (torch.rand(features, dtype=torch.float64) - 0.5)
    covariance: Tensor = directions * variances @ directions.T
    return covariance


def maximum_likelihood(x: Tensor) -> Estimate:
    """Estimate by the covariance of the data about 0."""
    begun = time.perf_counter()
    estimate = gaussian_estimate(x.T @ x / len(x))
    return estimate._replace(seconds=time.perf_counter() - begun)


def noise_contrastive(x: Tensor, noise: Distribution, k: int) -> Estimate:
    """Estimate by NCE, the mean known and fixed, starting at a precision of 1 and a log Z of 0."""
    begun = time.perf_counter()
    model = UnnormalizedGaussian(x.shape[1]).to(x)
    model.mean.requires_grad_(False)
    estimator = NCE(model, noise, num_noise=k)
    converged = fit(estimator, x).converged
    with torch.no_grad():
        return Estimate(model.precision, estimator.log_partition, time.perf_counter() - begun, converged)


def squared_errors(estimate: Estimate, truth: Estimate) -> dict[str, float]:
    """Return the mean squared error of the entries of the precision, and that of log Z."""
    return {name: (getattr(estimate, name) - getattr(truth, name)).square().mean().item() for name in QUANTITIES}


def seed_draws(*numbers: int) -> None:
    """Seed torch by several numbers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def estimates(options: DensityOptions, repeat: int, n: int) -> tuple[Estimate, dict[int | None, Estimate]]:
    """Return the truth of a repeat, and what n points tell of it: by k, with maximum likelihood at None."""
    seed_draws(options.seed, repeat)
    covariance = draw_covariance(options.features)
    seed_draws(options.seed, repeat, n)
    x = MultivariateNormal(torch.zeros(options.features, dtype=torch.float64), covariance).sample((n,))
    noise = NOISES[options.noise](x)
    found: dict[int | None, Estimate] = {k: noise_contrastive(x, noise, k) for k in options.ratios}
    return gaussian_estimate(covariance), {None: maximum_likelihood(x), **found}


def study_density(options: DensityOptions, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Estimate every Gaussian from every number of points with every k.

    Args:
        options: what to measure.
        say: receives a line as each sample size is done.

    Returns:
        What `results.json` holds: the options, and for maximum likelihood and each k the median squared errors
        with their quartiles by sample size, and the rates at which they fall.
    """
    jobs = [(n, repeat) for n in options.sample_sizes for repeat in range(options.repeats)]
    drawn: dict[int | None, dict[int, list[dict[str, float]]]] = {k: {} for k in (None, *options.ratios)}
    with torch.random.fork_rng(devices=[]):
        for n, repeat in track(jobs, "density", transient=True, disable=not sys.stderr.isatty()):
            truth, found = estimates(options, repeat, n)
            for k, estimate in found.items():
                figures = {"seconds": estimate.seconds, "unconverged": not estimate.converged}
                drawn[k].setdefault(n, []).append({**squared_errors(estimate, truth), **figures})
            if repeat == options.repeats - 1:
                errors = {k: summary([draw["precision"] for draw in drawn[k][n]])["median"] for k in drawn}
                said = "; ".join(f"{estimator_name(k)}: {error:.2g}" for k, error in errors.items())
                say(f"n = {n:,}, squared error of the precision by {said}")
    return {
        **surroundings(),
        "options": asdict(options),
        "curves": [curve(k, drawn[k]) for k in drawn],
    }


def curve(k: int | None, drawn: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    """Summarise the repeats of one estimator."""
    points: list[dict[str, Any]] = [
        {
            "n": n,
            **{name: summary([draw[name] for draw in draws]) for name in QUANTITIES},
            "seconds": float(np.median([draw["seconds"] for draw in draws])),
            "unconverged": int(sum(draw["unconverged"] for draw in draws)),
        }
        for n, draws in drawn.items()
    ]
    sizes = list(drawn)
    rates = {name: rate(sizes, [point[name]["median"] for point in points]) for name in QUANTITIES}
    return {"estimator": estimator_name(k), "k": k, "points": points, "rate": rates}


def summary(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def rate(sizes: list[int], errors: list[float]) -> float | None:
    """Return the slope of log error against log n by least squares, -1 where an error falls as 1 / n."""
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def estimator_name(k: int | None) -> str:
    """Name an estimator by its k."""
    return "maximum likelihood" if k is None else f"NCE, k = {k:,}"
