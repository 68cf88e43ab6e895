"""Noise that is fitted to data: its moments, its support, its errors."""

import sys

import pytest
import torch

from vastmax.density import gaussian_noise, mixture_noise, uniform_noise

X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1]) + 2


def test_gaussian_noise_has_the_moments_of_the_data():
    noise = gaussian_noise(X)
    torch.testing.assert_close(noise.mean, X.mean(0))
    torch.testing.assert_close(noise.covariance_matrix, X.T.cov())
    assert noise.log_prob(X).shape == (200,)
    assert gaussian_noise(X.double()[:, :1]).sample((4,)).dtype == torch.float64


def test_features_of_different_units_are_not_dependent():
    gaussian_noise(X * torch.tensor([1e-9, 1e6, 1.0]))


@pytest.mark.parametrize("margin", [0.1, 1.0])
def test_uniform_noise_is_a_box_around_the_data(margin):
    noise, extent = uniform_noise(X, margin), X.amax(0) - X.amin(0)
    torch.testing.assert_close(noise.log_prob(X), -(extent * (1 + 2 * margin)).log().sum().expand(200))
    edge = X.amax(0) + 0.99 * margin * extent
    assert noise.log_prob(edge).isfinite()
    with pytest.raises(ValueError, match="support"):
        noise.log_prob(X.amax(0) + 1.01 * margin * extent)


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([[1e8], [1e8 + 8]]),
        torch.tensor([[-1e8 - 8], [-1e8]]),
        torch.tensor([[1e17], [1e17 + 16]], dtype=torch.float64),
        torch.tensor([[256.0, -256.0], [258.0, -258.0]], dtype=torch.bfloat16),
        torch.tensor([[-1e-45], [0.0]]),
    ],
    ids=["float32", "below 0", "float64", "bfloat16", "at 0"],
)
def test_uniform_noise_has_a_density_at_data_whose_margin_is_rounded_off(x):
    noise = uniform_noise(x)
    assert noise.log_prob(x).isfinite().all()
    assert (noise.base_dist.low <= x.amin(0)).all()


def test_mixture_noise_finds_the_parts():
    x = torch.cat([X[:50] * 0.1, X[50:] + 30])
    noise = mixture_noise(x, 2)
    order = noise.mixture_distribution.probs.argsort()
    torch.testing.assert_close(noise.mixture_distribution.probs[order], torch.tensor([0.25, 0.75]))
    parts = noise.component_distribution
    torch.testing.assert_close(parts.mean[order[0]], x[:50].mean(0), atol=1e-4, rtol=1e-4)
    covariance = x[50:].T.cov(correction=0) + 1e-6 * torch.eye(3)
    torch.testing.assert_close(parts.covariance_matrix[order[1]], covariance, atol=1e-4, rtol=1e-4)
    assert torch.equal(mixture_noise(X, 3, seed=1).log_prob(X), mixture_noise(X, 3, seed=1).log_prob(X))


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(ImportError, match="needs the package scikit-learn: pip install"):
        mixture_noise(X, 2)


MAKERS = {"gaussian": gaussian_noise, "uniform": uniform_noise, "mixture": lambda x: mixture_noise(x, 2)}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[0.0]], TypeError, "x: expected a floating-point tensor .*, got list"),
        (X.long(), TypeError, "x: expected a floating-point tensor .*, got torch.int64"),
        (X[:, 0], ValueError, r"x: expected shape \(n, d\), got \(200,\)"),
        (torch.tensor(1.0), ValueError, r"x: expected shape \(n, d\), got \(\)"),
        (X[:1], ValueError, "x: expected more than"),
        (X.where(X < 7, torch.nan), ValueError, "x: expected finite values, got nan"),
    ],
)
def test_bad_points(make, x, error, message):
    with pytest.raises(error, match=message):
        make(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_noise(X[:3]), "x: expected more than 3 points, got 3"),
        (lambda: gaussian_noise(X[:, [0, 1, 0]]), "x: expected features none of which is constant or a linear"),
        (
            lambda: gaussian_noise(X * torch.tensor([1.0, 0.0, 1.0])),
            "x: expected features none of which is constant",
        ),
        (
            lambda: uniform_noise(X * torch.tensor([1.0, 0.0, 1.0])),
            "x: expected features that vary, got -0 throughout feature 1",
        ),
        (lambda: uniform_noise(X, 0.0), "margin: expected a finite number greater than 0, got 0.0"),
        (lambda: mixture_noise(X, 0), "num_components: expected an integer of at least 1, got 0"),
        (lambda: mixture_noise(X[:4], 5), "x: expected more than 4 points, got 4"),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
