"""Noise-contrastive estimation of an unnormalised density and of its log-partition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vastmax.functional import nce_loss
from vastmax.reduction import REDUCTIONS
from vastmax.validation import check_choice, check_finite, check_finite_number, check_positive_int


class NoiseSample(NamedTuple):
    """Points of noise, k for each row of the data.

    Attributes:
        points: (..., k, event).
        log_prob: (..., k) log q under the noise.
        log_weight: (..., k) log (q / r) of points that were drawn from a proposal r; None of those from the noise.
    """

    points: Tensor
    log_prob: Tensor
    log_weight: Tensor | None


class NCE(nn.Module):
    r"""Fit an unnormalised density by telling data from noise.

    $$\ell(x) = -\log \sigma(u(x) - \log k q(x)) - \sum_{j=1}^k \frac{q(x_j)}{r(x_j)} \log \sigma(-(u(x_j) -
      \log k q(x_j))), \qquad u(x) = \log \phi(x) - \log Z$$

    $x_j$ are k draws from the proposal $r$, which is the noise $q$ itself unless another is given. The expectation
    has its optimum where $e^u$ is the density of the data, for any k and any noise that has a density wherever the
    data do: $\log Z$ is a parameter as any other. As k grows, the estimate tends to that of maximum likelihood.

    Draws come from torch's global generator, as those of `torch.distributions` do; seed it by `torch.manual_seed`,
    inside `torch.random.fork_rng()` to leave the state of others alone. The noise is no part of `state_dict`, and
    no gradient reaches its parameters.

    Args:
        model: x (..., event) -> (...) log phi, a module or any function; may be -inf at noise, not at data.
        noise: `torch.distributions` distribution without batch axes, of x's dtype and device.
        num_noise: k, points of noise per point of data.
        log_partition: `"learned"`, a parameter that starts at 0; or a number, 0.0 where the model has that freedom.
        proposal: distribution with a density wherever the noise has one; where it has none, the loss is not that
            of the noise, and no draw can tell.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Raises:
        TypeError: a model that cannot be called, a noise or proposal that is no distribution.
        ValueError: a noise with batch axes, a proposal of another event shape, an option out of its bounds.

    References:
        Gutmann and Hyvarinen, Noise-contrastive estimation: A new estimation principle for unnormalized statistical
        models, 2010; and, with applications to natural image statistics, 2012.
        Riou-Durand and Chopin, Noise contrastive estimation: Asymptotic properties, formal comparison with MC-MLE,
        2018.

    Example:
        >>> from vastmax.density import fit
        >>> _ = torch.manual_seed(0)
        >>> x = 3 + 2 * torch.randn(5000)
        >>> parabola = nn.Parameter(torch.tensor([0.0, 0.0]))
        >>> def log_phi(x: Tensor) -> Tensor:
        ...     return parabola[0] * x - parabola[1].exp() * x.square()
        >>> estimator = NCE(log_phi, torch.distributions.Normal(0.0, 5.0), num_noise=10)
        >>> estimator.register_parameter("parabola", parabola)
        >>> fit(estimator, x).converged
        True
        >>> bool((1 / (2 * parabola[1].exp()) - 4).abs() < 0.3)  # the variance
        True
    """

    log_partition: Tensor

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        noise: Distribution,
        *,
        num_noise: int = 10,
        log_partition: float | str = "learned",
        proposal: Distribution | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model: expected a module or a function, got {type(model).__name__}")
        check_noise("noise", noise)
        if proposal is not None:
            check_noise("proposal", proposal)
            if proposal.event_shape != noise.event_shape:
                raise ValueError(
                    f"proposal: expected event shape {tuple(noise.event_shape)}, as the noise has, "
                    f"got {tuple(proposal.event_shape)}"
                )
        self.model = model
        self.noise = noise
        self.proposal = proposal
        self.num_noise = check_positive_int("num_noise", num_noise)
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)
        like = next(self.parameters(), torch.zeros(()))
        if isinstance(log_partition, str):
            check_choice("log_partition", log_partition, ["learned"])
            self.log_partition = nn.Parameter(like.new_zeros(()))
        else:
            given = check_finite_number("log_partition", log_partition)
            self.register_buffer("log_partition", like.new_tensor(given))

    def forward(self, x: Tensor, noise_sample: NoiseSample | None = None) -> Tensor:
        """Return the loss of data x (..., event).

        Args:
            x: (..., event).
            noise_sample: of `sample_noise`, to keep the noise from step to step; fresh draws if omitted.

        Returns:
            A scalar, or (...) with `reduction="none"`, in nats.

        Raises:
            TypeError: x no tensor.
            ValueError: x of another shape, empty or not finite, or a point at which the noise has no density; a
                model that returns another shape than one number per point, or nan; noise of another shape.
        """
        rows = self._rows("x", x)
        log_q = self._noise_log_prob(x)
        if noise_sample is None:
            noise_sample = self.sample_noise(rows)
        points, noise_log_q, log_weight = noise_sample
        if self._rows("noise_sample", points) != (*rows, self.num_noise):
            raise ValueError(
                f"noise_sample: expected points of shape {(*rows, self.num_noise, *x.shape[len(rows) :])}, "
                f"got {tuple(points.shape)}"
            )
        # A draw of no density, by a wider proposal or on the rounded edge of a box, stands for none of the noise.
        outside = noise_log_q.isneginf()
        log_k = math.log(self.num_noise)
        return nce_loss(
            self._normalised(x, rows),
            self._normalised(points, points.shape[: len(rows) + 1]),
            log_q + log_k,
            noise_log_q + log_k,
            sampled_log_weight=log_weight,
            mask=outside if outside.any() else None,
            reduction=self.reduction,
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log phi - log Z of x (..., event): a log-density as far as the log-partition is right."""
        return self._normalised(x, self._rows("x", x))

    @torch.no_grad()
    def sample_noise(self, size: Sequence[int]) -> NoiseSample:
        """Draw k points for each of `size` rows.

        Raises:
            TypeError: a `size` that is not of integers.
            ValueError: one below 1, or the proposal drew what the noise refuses to score.
        """
        drawn_from = self.noise if self.proposal is None else self.proposal
        rows = [check_positive_int("size", length) for length in size]
        points = drawn_from.sample(torch.Size((*rows, self.num_noise)))
        try:
            log_prob = self.noise.log_prob(points)
        except ValueError as error:
            raise ValueError(
                "proposal: drew points outside the support of the noise, which with validate_args=False counts "
                f"them for nothing: {first_line(error)}"
            ) from error
        if self.proposal is None:
            return NoiseSample(points, log_prob, None)
        proposal_log_prob = self.proposal.log_prob(points)
        log_weight = (log_prob - proposal_log_prob).masked_fill(proposal_log_prob.isneginf(), -torch.inf)
        return NoiseSample(points, log_prob, log_weight)

    def extra_repr(self) -> str:
        """Say what the model is contrasted with."""
        drawn = "" if self.proposal is None else f", proposal={self.proposal}"
        return f"noise={self.noise}, num_noise={self.num_noise}{drawn}, reduction={self.reduction!r}"

    def _rows(self, name: str, x: Tensor) -> torch.Size:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        event = self.noise.event_shape
        rows = x.shape[: x.ndim - len(event)]
        if x.shape[len(rows) :] != event or len(rows) + len(event) != x.ndim:
            raise ValueError(f"{name}: expected shape (..., {', '.join(map(str, event))}), got {tuple(x.shape)}")
        if x.numel() == 0:
            raise ValueError(f"{name}: expected at least one point, got shape {tuple(x.shape)}")
        if x.is_floating_point():
            check_finite(name, x)
        return rows

    def _normalised(self, x: Tensor, rows: torch.Size) -> Tensor:
        log_phi = self.model(x)
        if log_phi.shape != rows:
            raise ValueError(
                f"model: expected shape {tuple(rows)}, one log-density per point, got {tuple(log_phi.shape)}"
            )
        if log_phi.isnan().any():
            raise ValueError(
                f"model: expected log-densities, got nan at {tuple(log_phi.isnan().nonzero()[0].tolist())}"
            )
        return log_phi - self.log_partition

    @torch.no_grad()
    def _noise_log_prob(self, x: Tensor) -> Tensor:
        expected = "x: expected points where the noise has a density, for NCE is not defined elsewhere"
        try:
            log_q = self.noise.log_prob(x)
        except ValueError as error:  # what torch's own validation raises
            raise ValueError(f"{expected}: {first_line(error)}") from error
        if not log_q.isfinite().all():
            place = tuple((~log_q.isfinite()).nonzero()[0].tolist())
            raise ValueError(f"{expected}, got log q = {log_q[place].item()} at {place}")
        return log_q


def check_noise(name: str, noise: Distribution) -> None:
    """Raise unless `noise` is a distribution whose log_prob is one number per point."""
    if not isinstance(noise, Distribution):
        raise TypeError(f"{name}: expected a torch.distributions.Distribution, got {type(noise).__name__}")
    if noise.batch_shape:
        raise ValueError(
            f"{name}: expected one distribution, got a batch of shape {tuple(noise.batch_shape)}; "
            "torch.distributions.Independent makes its axes part of a point"
        )


def first_line(error: ValueError) -> str:
    """The message of an error of torch.distributions, which goes on to print the values."""
    return str(error).splitlines()[0].removesuffix(", but found invalid values:")
