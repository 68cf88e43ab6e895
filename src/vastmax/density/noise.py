"""Noise distributions that are fitted to data (n, d)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Uniform

from vastmax.validation import check_finite, check_finite_number, check_int, check_positive_int


@torch.no_grad()
def gaussian_noise(x: Tensor) -> MultivariateNormal:
    r"""Return the Gaussian of the data's mean and covariance.

    $$q = \mathcal N(\bar x, S), \qquad S = \frac 1 {n - 1} \sum_i (x_i - \bar x) (x_i - \bar x)^T$$

    Args:
        x: (n, d) with n greater than d.

    Raises:
        TypeError, ValueError: x no finite floating-point (n, d), too few points, or a singular covariance.

    Example:
        >>> gaussian_noise(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])).mean
        tensor([1., 1.])
    """
    check_points(x, more_than=x.shape[-1] if isinstance(x, Tensor) and x.ndim else 0)
    covariance = x.double().T.cov().reshape(x.shape[1], x.shape[1])
    scale = covariance.diagonal().sqrt()
    # Correlations, so that features of different units are not taken for dependent ones.
    least = torch.linalg.eigvalsh(covariance / scale.outer(scale))[0].item() if scale.all() else 0.0
    if not least > x.shape[1] * torch.finfo(x.dtype).eps:
        raise ValueError(
            f"x: expected features none of which is constant or a linear function of the others, got correlations "
            f"with a smallest eigenvalue of {least:.3g}"
        )
    return MultivariateNormal(x.mean(0), scale_tril=torch.linalg.cholesky(covariance).to(x.dtype))


@torch.no_grad()
def uniform_noise(x: Tensor, margin: float = 0.1) -> Independent[Uniform]:
    r"""Return the uniform distribution on a box around the data.

    $$q = \prod_i \mathcal U(a_i - m (b_i - a_i),\ b_i + m (b_i - a_i))$$

    for features between $a_i$ and $b_i$. Data outside the box are an error of the estimator. Where rounding leaves
    nothing of the margin, the box still reaches past $b_i$, which is no part of it.

    Args:
        x: (n, d).
        margin: m, greater than 0: the share of the range that is added at either side.

    Raises:
        TypeError, ValueError: x no finite floating-point (n, d), a constant feature, a margin out of its bounds.

    Example:
        >>> uniform_noise(torch.tensor([[0.0], [10.0]])).base_dist.high
        tensor([11.])
    """
    check_points(x, more_than=1)
    margin = check_finite_number("margin", margin, above=0.0)
    low, high = x.amin(0), x.amax(0)
    if (low == high).any():
        place = int((low == high).nonzero()[0])
        raise ValueError(f"x: expected features that vary, got {low[place].item():g} throughout feature {place}")
    room = margin * (high - low)
    # The density of torch's uniform is 0 at the upper end itself.
    above = torch.nextafter(high, torch.full_like(high, torch.inf))
    return Independent(Uniform(low - room, torch.maximum(high + room, above)), 1)


def mixture_noise(x: Tensor, num_components: int, *, seed: int = 0) -> MixtureSameFamily:
    r"""Return a mixture of Gaussians that is fitted to the data by expectation maximisation.

    $$q = \sum_j \pi_j\, \mathcal N(\mu_j, S_j)$$

    It is scikit-learn's `GaussianMixture`, with a full covariance for each component.

    Args:
        x: (n, d).
        num_components: at most n.
        seed: of the start.

    Raises:
        ImportError: without scikit-learn.
        TypeError, ValueError: x no finite floating-point (n, d), fewer points than components,
            a seed out of [0, 2**32).

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [9.0], [11.0]])
        >>> mixture_noise(x, 2).component_distribution.mean.flatten().sort().values
        tensor([ 0.5000, 10.0000])
    """
    try:
        from sklearn.mixture import GaussianMixture  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("mixture_noise needs the package scikit-learn: pip install 'vastmax[train]'") from error
    seed = check_int("seed", seed)
    check_finite_number("seed", seed, at_least=0, below=2**32)
    num_components = check_positive_int("num_components", num_components)
    check_points(x, more_than=max(num_components - 1, 1))
    mixture = GaussianMixture(num_components, random_state=seed).fit(x.detach().double().cpu().numpy())
    weight, mean, covariance = (
        torch.from_numpy(values).to(x.device) for values in (mixture.weights_, mixture.means_, mixture.covariances_)
    )
    factor = torch.linalg.cholesky(covariance).to(x.dtype)
    return MixtureSameFamily(
        Categorical(weight.to(x.dtype)), MultivariateNormal(mean.to(x.dtype), scale_tril=factor)
    )


def check_points(x: Tensor, *, more_than: int) -> None:
    """Raise unless x is finite, floating-point and (n, d), with more than so many points."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: expected a floating-point tensor (n, d), got {kind}")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x: expected shape (n, d), got {tuple(x.shape)}")
    if len(x) <= more_than:
        raise ValueError(f"x: expected more than {more_than} points, got {len(x)}")
    check_finite("x", x)
