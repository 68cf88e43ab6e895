"""The figures of a study of estimators, against enumeration and closed forms."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from vastmax import samplers
from vastmax.study.estimator_options import FIXED, SAMPLERS, StudyOptions
from vastmax.study.estimators import build_head, measure, sample_sizes, study_estimators
from vastmax.study.gradients import GradientErrors, by_part, exact_gradients, gradients, mini_batch_noise
from vastmax.study.implied import unit_gain
from vastmax.study.problems import draw_targets, synthetic_problem

WIDTH = 3


def problem_of(num_rows, num_classes):
    return synthetic_problem(num_rows, num_classes, WIDTH, seed=1, dtype=torch.float64)


def logits_of(problem):
    return problem.hidden @ problem.weight.T + problem.bias


def from_logits(problem, grad_logits):
    """The gradients of hidden and class rows that a gradient of every row's logits, (N, V), makes."""
    grad = grad_logits / problem.num_rows
    return by_part(grad.T @ problem.hidden, grad.sum(0), grad @ problem.weight)


def mean_gradients(problem, head, repeats):
    """The mean of a head's gradients, by part, and the norm of its standard error."""
    generator = torch.Generator().manual_seed(0)
    errors = None
    for _ in range(repeats):
        hidden = problem.hidden.clone().requires_grad_()
        drawn = by_part(*gradients(head(hidden, problem.target, generator=generator), head, hidden))
        errors = errors or {part: GradientErrors(torch.ones_like(g)) for part, g in drawn.items()}
        for part, estimate in drawn.items():
            errors[part].update(estimate)
    return {part: (e.mean, math.sqrt(e.scatter / (e.count - 1) / e.count)) for part, e in errors.items()}


def within(found, expected, deviations=3):
    """Whether a mean is within so many standard errors; the norm of its deviation has a mean square of one."""
    for part, (mean, standard_error) in found.items():
        assert standard_error > 0
        assert (mean - expected[part]).norm() < deviations * standard_error, part


class TestGradients:
    def test_the_exact_gradient_is_that_of_torch(self):
        problem = problem_of(5, 7)
        probability = logits_of(problem).softmax(-1)
        expected = from_logits(problem, probability - one_hot(problem.target, 7))
        for part, gradient in exact_gradients(problem).items():
            torch.testing.assert_close(gradient, expected[part])

    def test_the_noise_of_a_mini_batch_is_the_spread_of_its_rows(self):
        problem = problem_of(6, 9)
        weight = torch.cat([problem.weight, problem.bias.unsqueeze(1)], 1).requires_grad_()
        hidden = torch.cat([problem.hidden, torch.ones(6, 1, dtype=torch.float64)], 1)
        per_row = torch.stack(
            [
                torch.autograd.grad(cross_entropy(weight @ h, y), weight)[0]
                for h, y in zip(hidden, problem.target, strict=True)
            ]
        )
        expected = (per_row.flatten(1).var(0).sum() / 6).sqrt() / per_row.mean(0).norm()
        noise = mini_batch_noise(problem, exact_gradients(problem)["class_rows"])
        assert noise == pytest.approx(expected.item(), rel=1e-10)

    def test_running_sums_are_the_moments(self):
        generator = torch.Generator().manual_seed(0)
        exact = torch.randn(4, 3, dtype=torch.float64, generator=generator)
        drawn = 0.5 * exact + 0.3 * torch.randn(6, 4, 3, dtype=torch.float64, generator=generator)
        errors = GradientErrors(exact)
        for estimate in drawn:
            errors.update(estimate)
        found, norm, flat = errors.compute(), exact.norm(), drawn.flatten(1)
        variance = flat.var(0).sum()
        bias = ((drawn.mean(0) - exact).norm().square() - variance / 6).sqrt()
        cosines = torch.cosine_similarity(flat, exact.flatten().unsqueeze(0))
        expected = {
            "bias": bias / norm,
            "bias_resolution": (variance / 6).sqrt() / norm,
            "std": variance.sqrt() / norm,
            "error": (flat - exact.flatten()).square().sum(1).mean().sqrt() / norm,
            "gain": (drawn.mean(0) * exact).sum() / norm.square(),
            "cosine": cosines.mean(),
            "cosine_of_mean": torch.cosine_similarity(drawn.mean(0).flatten(), exact.flatten(), 0),
        }
        assert found == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-12)

        scaled = [estimate / found["gain"] for estimate in drawn]
        squared = sum((estimate - exact).square().sum() for estimate in scaled) / 6
        assert unit_gain(found)["error"] == pytest.approx((squared.sqrt() / norm).item(), rel=1e-12)

    def test_the_bias_of_unbiased_estimates_has_no_floor(self):
        """The distance of the mean alone would be that of its noise, 1 / sqrt(R)."""
        generator = torch.Generator().manual_seed(0)
        errors = GradientErrors(torch.ones(1000, dtype=torch.float64))
        for _ in range(20):
            errors.update(1 + torch.randn(1000, dtype=torch.float64, generator=generator))
        found = errors.compute()
        assert found["bias_resolution"] == pytest.approx(20**-0.5, rel=0.05)
        assert found["bias"] < 0.3 * 20**-0.5

    def test_no_estimate_has_no_direction(self):
        errors = GradientErrors(torch.ones(3))
        for _ in range(2):
            errors.update(torch.zeros(3))
        assert errors.compute()["cosine"] == 0
        assert unit_gain(errors.compute())["error"] == math.inf
        with pytest.raises(ValueError, match="problem: expected an exact gradient other than 0"):
            GradientErrors(torch.zeros(3))


class TestEstimators:
    def test_a_set_of_all_classes_is_exact(self):
        problem = problem_of(8, 40)
        exact = exact_gradients(problem)
        for name in FIXED:
            sampler = SAMPLERS[name].build(problem, True, 40)
            figures = measure(
                build_head("sampled-distinct", problem, sampler, 40), problem, exact, repeats=3, seed=0
            )
            for part in exact:
                assert figures[part]["error"] < 1e-12
                assert figures[part]["bias"] < 1e-12
                assert figures[part]["std"] < 1e-12
                assert figures[part]["cosine"] == pytest.approx(1, abs=1e-12)
                assert figures[part]["gain"] == pytest.approx(1, abs=1e-12)

    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("name", ["sampled", "importance"])
    def test_softmax_over_candidates_against_every_multiset(self, name, shared):
        problem, k = problem_of(3, 4), 2
        sampler = samplers.Unigram(problem.counts, 1.0)
        q = sampler.log_prob(torch.arange(4)).exp()
        logit, hot = logits_of(problem), one_hot(problem.target, 4).double()
        expected = torch.zeros(3, 4, dtype=torch.float64)
        for ids in itertools.product(range(4), repeat=k):
            drawn = one_hot(torch.tensor(ids), 4).sum(0).double()
            count = drawn / (k * q)
            if name == "sampled":
                count = count + hot / (k * q[problem.target]).unsqueeze(1)
            weight = count * logit.exp()
            expected += q[list(ids)].prod() * (weight / weight.sum(-1, keepdim=True) - hot)
        found = mean_gradients(problem, build_head(name, problem, sampler, k, shared=shared), 1000)
        within(found, from_logits(problem, expected))

    def test_one_vs_each_is_the_sum_over_pairs_for_any_noise(self):
        problem = problem_of(3, 4)
        margin = logits_of(problem) - logits_of(problem).gather(1, problem.target.unsqueeze(1))
        pair = margin.sigmoid().scatter(1, problem.target.unsqueeze(1), 0.0)
        expected = pair - one_hot(problem.target, 4) * pair.sum(-1, keepdim=True)
        sampler = samplers.Unigram(problem.counts, 1.0)
        found = mean_gradients(problem, build_head("one-vs-each", problem, sampler, 2), 4000)
        within(found, from_logits(problem, expected))

    @staticmethod
    def expected_nce(problem, sampler, k):
        r"""-t (1 - sigma(u - log k q)) + k q sigma(u - log k q) of every class, with u normalised."""
        log_count = math.log(k) + sampler.log_prob(torch.arange(problem.num_classes))
        corrected = logits_of(problem).log_softmax(-1) - log_count
        target = one_hot(problem.target, problem.num_classes)
        return from_logits(problem, -target * (-corrected).sigmoid() + log_count.exp() * corrected.sigmoid())

    @pytest.mark.parametrize("shared", [True, False])
    def test_nce_against_its_closed_form(self, shared):
        problem, k = problem_of(3, 5), 3
        sampler = samplers.Unigram(problem.counts, 0.75)
        found = mean_gradients(problem, build_head("nce", problem, sampler, k, shared=shared), 1000)
        within(found, self.expected_nce(problem, sampler, k))

    def test_nce_tends_to_maximum_likelihood(self):
        problem = problem_of(16, 50)
        sampler = samplers.Unigram(problem.counts, 1.0)
        exact = exact_gradients(problem)
        for part in exact:
            cosines, distances = [], []
            for k in (1, 10, 100, 1000, 10_000, 10**6):
                expected = self.expected_nce(problem, sampler, k)[part]
                cosines.append(torch.cosine_similarity(expected.flatten(), exact[part].flatten(), 0).item())
                distances.append(((expected - exact[part]).norm() / exact[part].norm()).item())
            assert cosines == sorted(cosines)
            assert cosines[0] < 0.95
            assert cosines[-2] > 0.9999
            assert distances[-1] == pytest.approx(distances[-2] / 100, rel=0.05)  # the bias falls as 1 / k
        figures = [
            measure(build_head("nce", problem, sampler, k), problem, exact, repeats=20, seed=0)["class_rows"]
            for k in (1, 100, 10_000)
        ]
        assert [f["cosine"] for f in figures] == sorted(f["cosine"] for f in figures)
        assert figures[-1]["cosine"] > 0.99

    def test_candidates_of_each_row_s_own_average_out(self):
        """A mini-batch of N equal rows is one row that is estimated N times."""
        problem = problem_of(2, 20)
        parts = {name: getattr(problem, name)[:1].repeat_interleave(64, 0) for name in ("hidden", "target")}
        problem = type(problem)(**{**vars(problem), **parts})
        sampler, exact = samplers.Unigram(problem.counts, 1.0), exact_gradients(problem)
        spread = [
            measure(
                build_head("one-vs-each", problem, sampler, 5, shared=shared), problem, exact, repeats=200, seed=0
            )["class_rows"]["std"]
            for shared in (True, False)
        ]
        assert spread[0] / spread[1] == pytest.approx(8, rel=0.2)

    def test_a_sampler_that_draws_for_each_row(self):
        problem = synthetic_problem(6, 40, 4)
        options = StudyOptions(("sampled",), ("tree-guided",), num_samples=(10,), repeats=2, shared=False)
        (point,) = study_estimators(problem, options)["curves"][0]["points"]
        assert point["candidates"] == 10

    def test_uniform_weights_make_every_candidate_count(self):
        problem = problem_of(4, 30)
        flat = type(problem)(**{**vars(problem), "weight": torch.zeros_like(problem.weight)})
        sizes = sample_sizes(flat, samplers.Unigram(flat.counts, 1.0), 10, shared=True, seed=0)
        assert sizes == pytest.approx({"candidates": 10, "effective_sample_size": 10})
        skewed = sample_sizes(flat, samplers.Uniform(30), 10, shared=False, seed=0)
        assert 1 < skewed["effective_sample_size"] < 9
        distinct = sample_sizes(flat, samplers.Uniform(30, unique=True), 30, shared=False, seed=0)
        weight = flat.bias.exp()
        assert distinct == pytest.approx(
            {"candidates": 30, "effective_sample_size": (weight.sum() ** 2 / weight.square().sum()).item()}
        )


class TestProblems:
    def test_targets_follow_the_model(self):
        problem = problem_of(2, 4)
        generator = torch.Generator().manual_seed(0)
        draws = 20_000
        hidden = problem.hidden[:1].expand(draws, -1)
        count = draw_targets(hidden, problem.weight, problem.bias, generator).bincount(minlength=4)
        p = logits_of(problem)[0].softmax(-1)
        assert ((count - draws * p).abs() < 4 * (draws * p * (1 - p)).sqrt()).all()

    def test_rows_that_are_drawn_a_few_at_a_time(self, monkeypatch):
        problem = problem_of(5, 4)
        whole = draw_targets(problem.hidden, problem.weight, problem.bias, torch.Generator().manual_seed(0))
        monkeypatch.setattr("vastmax.study.problems.MOST_PROBABILITIES", 8)
        parts = draw_targets(problem.hidden, problem.weight, problem.bias, torch.Generator().manual_seed(0))
        assert whole.tolist() == parts.tolist()
