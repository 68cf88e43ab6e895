"""Unnormalised log-densities whose log-partition is known, to learn from and to check an estimate against."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vastmax.validation import check_choice, check_finite, check_hidden, check_positive_int


class UnnormalizedGaussian(nn.Module):
    r"""A Gaussian without its normalising constant.

    $$\log \phi(x) = -\tfrac 1 2 \lVert L^T (x - \mu) \rVert^2, \qquad
      \log Z = \tfrac d 2 \log 2 \pi - \log \lvert \det L \rvert$$

    $L L^T$ is the precision. $L$ is lower triangular, with `diagonal` (d,) and below it `off_diagonal`
    (d (d - 1) / 2,), row by row; the diagonal is free to change signs, of which the density has none. It starts at
    a precision of 1. A start several standard deviations off can end in a Gaussian that is flat along that line.

    Args:
        features: d.
        mean: (d,) where the mean starts, best at that of the data; 0 if omitted.

    Raises:
        TypeError, ValueError: `features` no integer of at least 1, a mean of another shape or not finite.

    Example:
        >>> model = UnnormalizedGaussian(2)
        >>> model(torch.tensor([[3.0, 4.0]])).item()
        -12.5
    """

    def __init__(self, features: int, *, mean: Tensor | None = None) -> None:
        super().__init__()
        self.features = features = check_positive_int("features", features)
        mean = start("mean", torch.zeros(features) if mean is None else mean, (features,))
        self.mean = nn.Parameter(mean)
        self.diagonal = nn.Parameter(mean.new_ones(features))
        self.off_diagonal = nn.Parameter(mean.new_zeros(features * (features - 1) // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return log phi (...) of x (..., d)."""
        check_hidden("x", x, self.features)
        return -0.5 * ((x - self.mean) @ self.factor).square().sum(-1)

    @property
    def factor(self) -> Tensor:
        """The triangular factor L of the precision, (d, d)."""
        return triangular(self.diagonal, self.off_diagonal)

    @property
    def precision(self) -> Tensor:
        """The inverse covariance, (d, d)."""
        return self.factor @ self.factor.T

    @property
    def covariance(self) -> Tensor:
        """The covariance, (d, d)."""
        return torch.cholesky_inverse(self.factor)

    @property
    def log_partition(self) -> Tensor:
        """The log Z that belongs to the parameters."""
        return 0.5 * self.features * math.log(2 * math.pi) - self.diagonal.abs().log().sum()


class UnnormalizedMixture(nn.Module):
    r"""A mixture of Gaussians without normalising constants.

    $$\log \phi(x) = \log \sum_j e^{a_j - \frac 1 2 \lVert L_j^T (x - \mu_j) \rVert^2}, \qquad
      \log Z = \log \sum_j e^{a_j + \frac d 2 \log 2 \pi - \log \lvert \det L_j \rvert}$$

    `log_scale` (J,) is a. To add a number to all of it is to add that to log Z: take `log_partition=0.0` in `NCE`,
    so that one of the two is learned. The other parameters are those of `UnnormalizedGaussian`, for each component.

    Args:
        features: d.
        num_components: J.
        means: (J, d) where the components start, best at points of the data; standard normal draws if omitted.

    Raises:
        TypeError, ValueError: a size that is no integer of at least 1, means of another shape or not finite.

    Example:
        >>> model = UnnormalizedMixture(1, 2, means=torch.tensor([[-5.0], [5.0]]))
        >>> model.responsibilities(torch.tensor([[-4.0], [5.0]])).argmax(-1)
        tensor([0, 1])
    """

    def __init__(self, features: int, num_components: int, *, means: Tensor | None = None) -> None:
        super().__init__()
        self.features = features = check_positive_int("features", features)
        self.num_components = num_components = check_positive_int("num_components", num_components)
        shape = (num_components, features)
        means = start("means", torch.randn(shape) if means is None else means, shape)
        self.mean = nn.Parameter(means)
        self.log_scale = nn.Parameter(means.new_zeros(num_components))
        self.diagonal = nn.Parameter(means.new_ones(num_components, features))
        self.off_diagonal = nn.Parameter(means.new_zeros(num_components, features * (features - 1) // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return log phi (...) of x (..., d)."""
        return self.component_logits(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """Return the posterior probability (..., J) of each component; log Z has no part in it."""
        return self.component_logits(x).softmax(-1)

    def component_logits(self, x: Tensor) -> Tensor:
        """Return the unnormalised log-density (..., J) of each component."""
        check_hidden("x", x, self.features)
        factor = triangular(self.diagonal, self.off_diagonal)
        projected: Tensor = torch.einsum("...jd,jde->...je", x.unsqueeze(-2) - self.mean, factor)
        return self.log_scale - 0.5 * projected.square().sum(-1)

    @property
    def log_partition(self) -> Tensor:
        """The log Z that belongs to the parameters."""
        return self._log_masses().logsumexp(-1)

    @property
    def weights(self) -> Tensor:
        """The probability (J,) of each component."""
        return self._log_masses().softmax(-1)

    def _log_masses(self) -> Tensor:
        return self.log_scale + 0.5 * self.features * math.log(2 * math.pi) - self.diagonal.abs().log().sum(-1)


class ICA(nn.Module):
    r"""Independent component analysis: linear functions of x are independent sources of variance 1.

    $$\log \phi(x) = \sum_i g(w_i \cdot x), \qquad g(s) = -\sqrt 2\, |s| \text{ or }
      -2 \log \cosh \tfrac{\pi s}{2 \sqrt 3}$$

    for Laplacian sources, as in Gutmann and Hyvarinen, or logistic ones, which are smooth. The densities of the
    sources are known; what `NCE` learns as log Z holds the $\log \lvert \det W \rvert$ of the change of variables,
    and no determinant is computed in training. The order and the signs of the sources are arbitrary.

    Args:
        features: d; `unmixing` W is (d, d), and starts as a random rotation.
        source: `"laplace"` or `"logistic"`.

    Raises:
        TypeError, ValueError: `features` no integer of at least 1, another source.

    Example:
        >>> model = ICA(2)
        >>> bool(torch.allclose(model.sources(torch.eye(2)), model.unmixing.T))
        True
    """

    def __init__(self, features: int, *, source: str = "laplace") -> None:
        super().__init__()
        self.features = features = check_positive_int("features", features)
        self.source = check_choice("source", source, ["laplace", "logistic"])
        self.unmixing = nn.Parameter(nn.init.orthogonal_(torch.empty(features, features)))

    def forward(self, x: Tensor) -> Tensor:
        """Return log phi (...) of x (..., d)."""
        size = self.sources(x).abs()
        if self.source == "laplace":
            return -math.sqrt(2) * size.sum(-1)
        # log cosh z = |z| + log(1 + exp(-2 |z|)) - log 2, which does not overflow.
        z = math.pi / (2 * math.sqrt(3)) * size
        return -2 * (z + functional.softplus(-2 * z) - math.log(2)).sum(-1)

    def sources(self, x: Tensor) -> Tensor:
        """Return the sources W x (..., d)."""
        check_hidden("x", x, self.features)
        return x @ self.unmixing.T

    @property
    def mixing(self) -> Tensor:
        """The matrix that makes x of the sources, (d, d): the inverse of W."""
        inverse: Tensor = torch.linalg.inv(self.unmixing)
        return inverse

    @property
    def log_partition(self) -> Tensor:
        """The log Z that belongs to W."""
        log_mass = 0.5 * math.log(2) if self.source == "laplace" else math.log(4 * math.sqrt(3) / math.pi)
        log_volume: Tensor = torch.linalg.slogdet(self.unmixing).logabsdet
        return self.features * log_mass - log_volume


def triangular(diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    """Return the lower-triangular (..., d, d) with this diagonal, and `off_diagonal` below it."""
    d = diagonal.shape[-1]
    row, column = torch.tril_indices(d, d, offset=-1, device=diagonal.device)
    factor = diagonal.diag_embed()
    factor[..., row, column] = off_diagonal
    return factor


def start(name: str, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a copy of the values where a parameter starts, if they are finite and of this shape."""
    check_hidden(name, values, shape[-1])
    if values.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(values.shape)}")
    check_finite(name, values)
    return values.detach().clone()
