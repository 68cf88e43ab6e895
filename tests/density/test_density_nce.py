"""Continuous NCE against quadrature, enumeration, and the asymptotic theory of its errors."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, Uniform
from torch.nn.functional import softplus

from vastmax.density import NCE, NoiseSample, UnnormalizedGaussian, fit, gaussian_noise

MEAN, SCALE = 1.0, 1.5
LOG_Z = math.log(SCALE * math.sqrt(2 * math.pi))


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def normal(mean, scale):
    return Independent(Normal(torch.tensor([mean]), torch.tensor([scale])), 1)


GRID = torch.linspace(-14.0, 16.0, 3001, dtype=torch.float64).unsqueeze(1)
STEP = 0.01
NOISES = {
    "wide": lambda: normal(0.0, 3.0),
    "true": lambda: normal(MEAN, SCALE),
    "mixture": lambda: MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7])),
        Independent(Normal(torch.tensor([[-2.0], [2.0]]), torch.tensor([[2.0], [3.0]])), 1),
    ),
    "box": lambda: Independent(Uniform(torch.tensor([-15.0]), torch.tensor([17.0])), 1),
}


class WithoutLogK(Normal):
    """Noise of log-probabilities that are too low by log k, so that the correction lacks it."""

    def __init__(self, mean, scale, k):
        super().__init__(mean, scale)
        self.log_k = math.log(k)

    def log_prob(self, x):
        return super().log_prob(x) - self.log_k


class Given(Categorical):
    """A distribution whose draws are told."""

    def sample(self, shape):
        assert shape == self.points.shape
        return self.points


def gaussian(mean=MEAN, scale=SCALE):
    model = UnnormalizedGaussian(1)
    with torch.no_grad():
        model.mean.fill_(mean)
        model.diagonal.fill_(1 / scale)
    return model


def expected_loss(estimator):
    """The expectation over data and noise, by quadrature: one point of a grid draws itself, weighted by q / p."""
    log_p = normal(MEAN, SCALE).log_prob(GRID)
    log_q = estimator.noise.log_prob(GRID)
    points = GRID.unsqueeze(1).expand(-1, estimator.num_noise, -1)
    log_weight = (log_q - log_p).unsqueeze(1).expand(-1, estimator.num_noise)
    sample = NoiseSample(points, log_q.unsqueeze(1).expand(-1, estimator.num_noise), log_weight)
    return (log_p.exp() * STEP * estimator(GRID, sample)).sum()


class TestExpectation:
    @pytest.mark.parametrize("k", [1, 10])
    @pytest.mark.parametrize("noise", NOISES)
    def test_the_truth_is_the_optimum(self, noise, k):
        estimator = NCE(gaussian(), NOISES[noise](), num_noise=k, reduction="none")
        with torch.no_grad():
            estimator.log_partition.fill_(LOG_Z)
        for gradient in torch.autograd.grad(expected_loss(estimator), [*parameters(estimator)]):
            assert gradient.abs().max() < 1e-9

    @pytest.mark.parametrize("k", [1, 10])
    @pytest.mark.parametrize("noise", NOISES)
    def test_descent_ends_there(self, noise, k):
        estimator = NCE(gaussian(-0.5, 1.0), NOISES[noise](), num_noise=k, reduction="none")
        optimizer = torch.optim.LBFGS(
            [*parameters(estimator)],
            max_iter=200,
            tolerance_grad=1e-10,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure():
            optimizer.zero_grad()
            loss = expected_loss(estimator)
            loss.backward()
            return loss

        optimizer.step(closure)
        found = (
            estimator.model.mean.item(),
            estimator.model.covariance.sqrt().item(),
            estimator.log_partition.item(),
        )
        assert found == pytest.approx((MEAN, SCALE, LOG_Z), abs=1e-6)

    @pytest.mark.parametrize("k", [1, 10])
    def test_its_value_is_the_equation_s(self, k):
        noise = NOISES["wide"]()
        estimator = NCE(gaussian(0.3, 1.0), noise, num_noise=k, log_partition=0.4, reduction="none")
        p, q = normal(MEAN, SCALE).log_prob(GRID).exp(), noise.log_prob(GRID).exp()
        odds = (-0.5 * (GRID[:, 0] - 0.3).square() - 0.4).exp() / (k * q)
        value = -STEP * (p * (odds / (1 + odds)).log() - k * q * (1 + odds).log()).sum()
        torch.testing.assert_close(expected_loss(estimator), value)

    @pytest.mark.parametrize("k", [2, 10])
    def test_without_log_k_the_log_partition_is_too_large_by_it(self, k):
        noise = Independent(WithoutLogK(torch.tensor([0.0]), torch.tensor([3.0]), k), 1)
        estimator = NCE(gaussian(), noise, num_noise=k, reduction="none")
        with torch.no_grad():
            estimator.log_partition.fill_(LOG_Z + math.log(k))
        # q is too small by k as a correction, and what it stands for in the expectation is k times that.
        log_p = normal(MEAN, SCALE).log_prob(GRID)
        log_q = noise.log_prob(GRID)
        sample = NoiseSample(
            GRID.unsqueeze(1).expand(-1, k, -1),
            log_q.unsqueeze(1).expand(-1, k),
            (log_q + math.log(k) - log_p).unsqueeze(1).expand(-1, k),
        )
        loss = (log_p.exp() * STEP * estimator(GRID, sample)).sum()
        for gradient in torch.autograd.grad(loss, [*parameters(estimator)]):
            assert gradient.abs().max() < 1e-9

    @pytest.mark.parametrize("r", [None, [0.4, 0.1, 0.2, 0.3]])
    def test_draws_of_noise_or_of_a_proposal_by_enumeration(self, r):
        """Integer data: every pair of draws, by its probability, gives the loss of the noise."""
        q, logit, k = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.randn(4), 2
        drawn_from = Given(torch.tensor(r) if r else q)
        noise = Categorical(q) if r else drawn_from
        estimator = NCE(
            lambda x: logit[x], noise, num_noise=k, log_partition=0.7, proposal=drawn_from if r else None
        )
        target, mean = torch.tensor(2), 0.0
        for ids in itertools.product(range(4), repeat=k):
            drawn_from.points = torch.tensor(ids)
            mean += drawn_from.probs[list(ids)].prod() * estimator(target)
        corrected = logit - 0.7 - (k * q).log()
        expected = softplus(-corrected[target]) + k * (q * softplus(corrected)).sum()
        torch.testing.assert_close(mean, expected)

    def test_a_proposal_that_is_the_noise_is_nce(self):
        x, losses = torch.randn(20, 1), []
        for proposal in (None, normal(0.0, 2.0)):
            torch.manual_seed(1)
            losses.append(NCE(gaussian(), normal(0.0, 2.0), proposal=proposal)(x))
        assert losses[0].item() == losses[1].item()

    def test_a_wider_proposal_draws_for_nothing_outside_of_the_noise(self):
        torch.manual_seed(0)
        noise, wide = (Uniform(*ends, validate_args=False) for ends in ((-1.0, 1.0), (-3.0, 5.0)))
        slope = nn.Parameter(torch.tensor(0.3))
        estimator = NCE(lambda x: slope * x, noise, num_noise=50, log_partition=0.2, proposal=wide)
        sample = estimator.sample_noise([1])
        inside = sample.points[sample.points.abs() < 1]
        assert 0 < len(inside) < 25
        x = torch.tensor([0.5])
        loss = estimator(x, sample)
        (gradient,) = torch.autograd.grad(loss, slope)
        data, noise = (slope * points - 0.2 - math.log(25) for points in (x, inside))
        expected = softplus(-data).sum() + 4 * softplus(noise).sum()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, slope)[0])


def parameters(estimator):
    return (parameter for parameter in estimator.parameters() if parameter.numel())


class TestErrorsOfEstimates:
    @pytest.mark.parametrize(("n", "k"), [(300, 1), (1500, 1), (1500, 10)])
    def test_the_asymptotic_covariance(self, n, k):
        r"""Riou-Durand and Chopin: with g the gradient of log p, w = k q / (p + k q) and J = E_p[w g g^T], the
        covariance of the estimate is J^-1 - (1 + 1 / k) J^-1 E_p[w g] E_p[w g]^T J^-1, divided by n."""
        repeats, noise = 60, normal(0.0, 3.0)
        log_p, log_q = (d.log_prob(GRID) for d in (normal(MEAN, SCALE), noise))
        z = GRID[:, 0] - MEAN
        g = torch.stack([z / SCALE**2, -0.5 * z.square(), -torch.ones(len(z))], 1)  # mean, precision, log Z
        w = (math.log(k) + log_q - log_p).sigmoid()
        inverse = torch.einsum("x,xi,xj->ij", log_p.exp() * STEP * w, g, g).inverse()
        mean = inverse @ ((log_p.exp() * STEP * w) @ g)
        covariance = (inverse - (1 + 1 / k) * mean.outer(mean)) / n
        errors = []
        for _ in range(repeats):
            estimator = NCE(UnnormalizedGaussian(1), noise, num_noise=k)
            assert fit(estimator, MEAN + SCALE * torch.randn(n, 1)).converged
            model = estimator.model
            errors.append(
                [
                    model.mean.item() - MEAN,
                    model.precision.item() - SCALE**-2,
                    estimator.log_partition.item() - LOG_Z,
                ]
            )
        errors = torch.tensor(errors)
        # The mean of chi-squares of three degrees of freedom: 3, with a standard deviation of sqrt(6 / repeats).
        distance = torch.einsum("ri,ij,rj->r", errors, covariance.inverse(), errors).mean()
        assert abs(distance - 3) < 4 * math.sqrt(6 / repeats)

    @pytest.mark.parametrize("k", [1, 10, 100])
    def test_fitted_gaussian_noise_adds_one_kth_of_the_error_of_maximum_likelihood(self, k):
        """NCE's precision is maximum likelihood's and that of n k points of noise: n Var = P_ii P_jj + P_ij^2."""
        n, repeats = 1000, 20 if k < 100 else 4
        covariance = torch.tensor([[1.5, 0.6], [0.6, 1.0]])
        precision = covariance.inverse()
        variance = (precision.diagonal().outer(precision.diagonal()) + precision.square()).sum() / n
        distances, gaps = [], []
        for _ in range(repeats):
            x = MultivariateNormal(torch.tensor([0.0, 3.0]), covariance).sample((n,))
            likeliest = x.T.cov(correction=0).inverse()
            estimator = NCE(UnnormalizedGaussian(2, mean=x.mean(0)), gaussian_noise(x), num_noise=k)
            assert fit(estimator, x).converged
            distances.append((estimator.model.precision - likeliest).square().sum().item())
            gaps.append((estimator.log_partition - estimator.model.log_partition).abs().item())
        # A weighted sum of three chi-squares has at least one degree of freedom: a spread of sqrt(2) means.
        ratio = sum(distances) / repeats * k / variance.item()
        assert abs(ratio - 1) < 3 * math.sqrt(2 / repeats) * 0.8
        # What is learned as log Z is the log Z of what is learned, but for O(1 / n): either's own error is 0.03.
        assert sum(gaps) / repeats < 10 / n

    def test_stochastic_steps_on_fresh_noise(self):
        x = MEAN + SCALE * torch.randn(4000, 1)
        estimator = NCE(UnnormalizedGaussian(1), normal(0.0, 2.0))
        optimizer = torch.optim.Adam(estimator.parameters(), 0.05)
        for step in range(300):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1 - step / 300)
            optimizer.zero_grad()
            estimator(x[torch.randint(len(x), (500,))]).backward()
            optimizer.step()
        found = estimator.model.mean.item(), estimator.model.covariance.item(), estimator.log_partition.item()
        assert found == pytest.approx(
            (x.mean().item(), x.var().item(), math.log(2 * math.pi * x.var()) / 2), abs=0.1
        )
        torch.testing.assert_close(estimator.log_prob(x), estimator.model(x) - estimator.log_partition)


class TestInterface:
    def test_reductions(self):
        x, sample = torch.randn(2, 3, 1), None
        losses = {}
        for reduction in ("none", "sum", "mean"):
            estimator = NCE(gaussian(), normal(0.0, 2.0), reduction=reduction)
            sample = sample or estimator.sample_noise(x.shape[:2])
            losses[reduction] = estimator(x, sample)
        assert losses["none"].shape == (2, 3)
        torch.testing.assert_close(losses["none"].sum(), losses["sum"])
        torch.testing.assert_close(losses["none"].mean(), losses["mean"])

    def test_points_that_are_numbers(self):
        x = torch.randn(5)
        sample = NCE(lambda x: -x.square(), Normal(0.0, 2.0)).sample_noise([5])
        alone = NCE(lambda x: -x.square(), Normal(0.0, 2.0))(x, sample)
        wrapped = NCE(lambda x: -x.square().sum(-1), normal(0.0, 2.0))
        one = NoiseSample(sample.points.unsqueeze(-1), sample.log_prob, None)
        torch.testing.assert_close(wrapped(x.unsqueeze(-1), one), alone)

    def test_the_seed_of_torch_is_that_of_the_noise(self):
        estimator, x = NCE(gaussian(), normal(0.0, 2.0)), torch.randn(4, 1)

        def draw(seed):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return estimator(x).item()

        assert draw(3) == draw(3) != draw(4)

    def test_no_gradient_reaches_the_noise(self):
        scale = nn.Parameter(torch.ones(1))
        estimator = NCE(gaussian(), Independent(Normal(torch.zeros(1), scale), 1), proposal=normal(0.0, 2.0))
        estimator(torch.randn(4, 1)).backward()
        assert scale.grad is None
        assert estimator.log_partition.grad is not None

    def test_a_given_log_partition_is_kept(self):
        estimator = NCE(gaussian(), normal(0.0, 2.0), log_partition=LOG_Z)
        assert sum(parameter.numel() for parameter in estimator.parameters()) == 2
        fit(estimator, torch.randn(200, 1))
        assert estimator.log_partition.item() == LOG_Z
        assert estimator.state_dict().keys() == NCE(gaussian(), normal(0.0, 2.0)).state_dict().keys()

    def test_the_log_partition_has_the_precision_of_the_model(self):
        assert NCE(gaussian().float(), normal(0.0, 2.0)).log_partition.dtype == torch.float32

    def test_a_fit_that_is_cut_short_says_so(self):
        x = torch.randn(200, 1)
        assert fit(NCE(gaussian(5.0), normal(0.0, 2.0)), x, max_iter=2)[1:] == (2, False)

    def test_a_fit_without_a_finite_end(self):
        weight = nn.Parameter(torch.zeros(()))
        nowhere = torch.tensor([0.0, -torch.inf])
        estimator = NCE(lambda x: weight + nowhere[(x > 5).long()], Normal(0.0, 1.0))
        with pytest.raises(FloatingPointError, match="fit: expected to end at a finite loss"):
            fit(estimator, torch.full((5,), 6.0))


BOX = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
LOOSE_BOX = Independent(Uniform(torch.zeros(2), torch.ones(2), validate_args=False), 1, validate_args=False)
WRONG = {
    "model": (lambda: NCE(3, BOX), TypeError, "model: expected a module or a function, got int"),
    "noise": (lambda: NCE(torch.sum, 3), TypeError, "noise: expected a torch.distributions.Distribution, got int"),
    "batch": (
        lambda: NCE(torch.sum, BOX.base_dist),
        ValueError,
        r"noise: .* a batch of shape \(2,\); .*Independent",
    ),
    "event": (
        lambda: NCE(torch.sum, BOX, proposal=Normal(0.0, 1.0)),
        ValueError,
        r"proposal: expected event shape \(2,\), as the noise has, got \(\)",
    ),
    "k": (
        lambda: NCE(torch.sum, BOX, num_noise=0),
        ValueError,
        "num_noise: expected an integer of at least 1, got 0",
    ),
    "log_partition": (lambda: NCE(torch.sum, BOX, log_partition="free"), ValueError, "log_partition: .* learned"),
    "nan partition": (
        lambda: NCE(torch.sum, BOX, log_partition=math.nan),
        ValueError,
        "log_partition: expected a fin",
    ),
    "reduction": (lambda: NCE(torch.sum, BOX, reduction="max"), ValueError, "reduction: expected one of none"),
    "list": (lambda: estimator()([[0.5, 0.5]]), TypeError, "x: expected a tensor, got list"),
    "shape": (lambda: estimator()(torch.rand(5, 3)), ValueError, r"x: expected shape \(..., 2\), got \(5, 3\)"),
    "number": (lambda: estimator()(torch.tensor(0.5)), ValueError, r"x: expected shape \(..., 2\), got \(\)"),
    "empty": (lambda: estimator()(torch.rand(0, 2)), ValueError, "x: expected at least one point"),
    "nan": (lambda: estimator()(torch.tensor([[0.5, math.nan]])), ValueError, r"x: expected finite .* at \(0, 1\)"),
    "outside": (
        lambda: estimator()(torch.tensor([[0.5, 2.0]])),
        ValueError,
        "x: expected points where the noise has",
    ),
    "far outside": (
        lambda: estimator(noise=LOOSE_BOX)(torch.tensor([[0.5, 0.5], [0.5, 2.0]])),
        ValueError,
        r"x: expected points where the noise has a density, .* got log q = -inf at \(1,\)",
    ),
    "proposal outside": (
        lambda: estimator(proposal=MultivariateNormal(torch.zeros(2), torch.eye(2)))(torch.rand(50, 2)),
        ValueError,
        "proposal: drew points outside the support of the noise, which with validate_args=False counts",
    ),
    "kept noise": (
        lambda: estimator()(torch.rand(5, 2), estimator().sample_noise([4])),
        ValueError,
        r"noise_sample: expected points of shape \(5, 10, 2\), got \(4, 10, 2\)",
    ),
    "output": (
        lambda: estimator(lambda x: x)(torch.rand(5, 2)),
        ValueError,
        r"model: expected shape \(5,\), one log",
    ),
    "nan output": (
        lambda: estimator(lambda x: x.sum(-1) * math.nan)(torch.rand(5, 2)),
        ValueError,
        r"model: expected log-densities, got nan at \(0,\)",
    ),
    "log_prob": (
        lambda: estimator().log_prob(torch.rand(3)),
        ValueError,
        r"x: expected shape \(..., 2\), got \(3,\)",
    ),
    "fit": (
        lambda: fit(estimator(reduction="sum"), torch.rand(5, 2)),
        ValueError,
        "estimator: .*='mean', got 'sum'",
    ),
    "nothing": (
        lambda: fit(estimator(lambda x: x.sum(-1), log_partition=0.0), torch.rand(5, 2)),
        ValueError,
        "estimator: expected a parameter to fit",
    ),
    "tolerance": (
        lambda: fit(estimator(), torch.rand(5, 2), tolerance=0.0),
        ValueError,
        "tolerance: expected a fin",
    ),
    "fit shape": (lambda: fit(estimator(), torch.rand(5, 3)), ValueError, r"x: expected shape \(..., 2\)"),
}


def estimator(model=lambda x: -x.square().sum(-1), *, noise=BOX, **options):
    return NCE(model, noise, **options)


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_data_to_fit_that_are_no_tensor():
    estimator = NCE(UnnormalizedGaussian(1), Independent(Normal(torch.zeros(1), torch.ones(1)), 1))
    with pytest.raises(TypeError, match="x: expected a tensor, got list"):
        fit(estimator, [1, 2])
