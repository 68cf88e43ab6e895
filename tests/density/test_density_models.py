"""The models against torch's own distributions, and what NCE recovers with them."""

import math

import pytest
import torch
from torch.distributions import Categorical, Laplace, MixtureSameFamily, MultivariateNormal

from vastmax.density import (
    ICA,
    NCE,
    UnnormalizedGaussian,
    UnnormalizedMixture,
    fit,
    gaussian_noise,
    mixture_noise,
    uniform_noise,
)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def scatter(model):
    """Give a model arbitrary parameters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def amari_index(product):
    """0 where a matrix is a permutation with scales, 1 where all its entries are of one size."""
    size = product.abs()
    rows, columns = ((size.sum(i) / size.amax(i) - 1).sum() for i in (0, 1))
    return ((rows + columns) / (2 * len(size) * (len(size) - 1))).item()


class TestDensities:
    @pytest.mark.parametrize("d", [1, 3])
    def test_gaussian(self, d):
        model, x = scatter(UnnormalizedGaussian(d)), torch.randn(4, 5, d)
        exact = MultivariateNormal(model.mean, precision_matrix=model.precision)
        torch.testing.assert_close(model(x) - model.log_partition, exact.log_prob(x))
        torch.testing.assert_close(model.covariance @ model.precision, torch.eye(d))

    @pytest.mark.parametrize("d", [1, 3])
    def test_mixture(self, d):
        model, x = scatter(UnnormalizedMixture(d, 4)), torch.randn(4, 5, d)
        factor = torch.zeros(4, d, d)
        below = torch.tril_indices(d, d, -1)
        factor[:, range(d), range(d)] = model.diagonal.detach()
        factor[:, below[0], below[1]] = model.off_diagonal.detach()
        parts = MultivariateNormal(model.mean, precision_matrix=factor @ factor.mT)
        torch.testing.assert_close(
            model(x) - model.log_partition, MixtureSameFamily(Categorical(model.weights), parts).log_prob(x)
        )
        joint = model.weights * parts.log_prob(x.unsqueeze(-2)).exp()
        torch.testing.assert_close(model.responsibilities(x), joint / joint.sum(-1, keepdim=True))

    def test_independent_components(self):
        model, x = scatter(ICA(3)), torch.randn(4, 5, 3)
        sources = Laplace(0.0, math.sqrt(0.5)).log_prob(model.sources(x)).sum(-1)  # of variance 1
        exact = sources + model.unmixing.det().abs().log()
        torch.testing.assert_close(model(x) - model.log_partition, exact)
        torch.testing.assert_close(model.sources(x @ model.mixing.T), x)

    def test_logistic_sources(self):
        model = ICA(1, source="logistic")
        s = torch.linspace(-40, 40, 80_001).unsqueeze(1)
        density = (model(s) - model.log_partition).exp() * 0.001
        torch.testing.assert_close(density.sum(), torch.tensor(1.0))
        torch.testing.assert_close((density * s[:, 0].square()).sum(), torch.tensor(1.0))
        assert model(torch.tensor([[1e4]])).isfinite()

    @pytest.mark.parametrize(
        ("build", "error", "message"),
        [
            (lambda: UnnormalizedGaussian(0), ValueError, "features: expected an integer of at least 1, got 0"),
            (
                lambda: UnnormalizedGaussian(2, mean=torch.ones(2, 2)),
                ValueError,
                r"mean: expected shape \(2,\), got",
            ),
            (
                lambda: UnnormalizedGaussian(2)(torch.ones(3)),
                ValueError,
                r"x: expected shape \(..., 2\), got \(3,\)",
            ),
            (lambda: UnnormalizedMixture(2, 0), ValueError, "num_components: expected an integer of at least 1"),
            (
                lambda: UnnormalizedMixture(2, 3, means=torch.ones(2, 2)),
                ValueError,
                r"means: .* \(3, 2\), got \(2, 2\)",
            ),
            (
                lambda: UnnormalizedMixture(1, 1, means=torch.tensor([[math.nan]])),
                ValueError,
                "means: expected finite values",
            ),
            (lambda: UnnormalizedMixture(2, 2)(torch.ones(2, 3)), ValueError, r"x: expected shape \(..., 2\)"),
            (
                lambda: ICA(2, source="cauchy"),
                ValueError,
                "source: expected one of laplace, logistic, got 'cauchy'",
            ),
            (lambda: ICA(2)(torch.ones(2, 2).long()), TypeError, "x: expected a floating-point tensor"),
        ],
    )
    def test_bad_input(self, build, error, message):
        with pytest.raises(error, match=message):
            build()


class TestRecovery:
    @pytest.mark.parametrize("make", [gaussian_noise, uniform_noise, lambda x: mixture_noise(x, 2)])
    def test_a_gaussian_and_its_log_partition(self, make):
        """Maximum likelihood's errors of the precision and of log Z have the variances P_ii P_jj + P_ij^2 and
        d / 2, over n; NCE's are at most a few times as large at k = 20."""
        covariance, n = torch.tensor([[2.0, 0.8, 0.0], [0.8, 1.0, -0.3], [0.0, -0.3, 0.5]]), 2000
        x = MultivariateNormal(torch.tensor([0.0, 1.0, -1.0]), covariance).sample((n,))
        estimator = NCE(UnnormalizedGaussian(3, mean=x.mean(0)), make(x), num_noise=20)
        assert fit(estimator, x).converged
        model, precision = estimator.model, covariance.inverse()
        variance = (precision.diagonal().outer(precision.diagonal()) + precision.square()) / n
        assert ((model.precision - precision).square().sum() / variance.sum()).sqrt() < 3
        log_z = 0.5 * (2 * math.pi * covariance).logdet()
        assert abs(estimator.log_partition - log_z) < 4 * math.sqrt(1.5 / n)
        torch.testing.assert_close(model.log_partition, estimator.log_partition, atol=0.1, rtol=0)

    def test_clusters(self):
        centres = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
        share = torch.tensor([0.5, 0.3, 0.2])
        label = share.multinomial(1000, replacement=True)
        x = centres[label] + torch.randn(1000, 2)
        model = UnnormalizedMixture(2, 3, means=centres + torch.tensor([2.0, 1.0]))
        estimator = NCE(model, gaussian_noise(x), num_noise=10, log_partition=0.0)
        assert fit(estimator, x).converged
        # Centres six deviations apart: fewer than one point in 300 lies nearer to another's.
        assert (model.responsibilities(x).argmax(-1) == label).float().mean() > 0.985
        assert (model.mean - centres).abs().max() < 0.35
        assert (model.weights - share).abs().max() < 0.06
        assert model.log_partition.abs() < 0.06  # it normalises itself

    @pytest.mark.parametrize("source", ["laplace", "logistic"])
    def test_mixed_sources(self, source):
        mixing = torch.tensor([[1.0, 0.5, 0.0], [-0.4, 1.0, 0.3], [0.2, -0.6, 1.0]])
        x = Laplace(0.0, math.sqrt(0.5)).sample((4000, 3)) @ mixing.T
        model = ICA(3, source=source)
        assert amari_index(model.unmixing.detach() @ mixing) > 0.2
        estimator = NCE(model, gaussian_noise(x), num_noise=10)
        fit(estimator, x)
        assert amari_index(model.unmixing.detach() @ mixing) < 0.05
        if source == "laplace":  # the sources are these: what is learned as log Z holds log |det W|
            assert abs(estimator.log_partition - model.log_partition) < 0.05
            assert abs(model.unmixing.det().abs().log() + mixing.det().log()) < 0.1
