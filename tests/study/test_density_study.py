"""A study of density estimation: its estimates, its figures, its files and its errors."""

import csv
import json
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from vastmax.commands import run
from vastmax.study import density_report as report
from vastmax.study.density import (
    NOISES,
    DensityOptions,
    Estimate,
    draw_covariance,
    estimates,
    gaussian_estimate,
    maximum_likelihood,
    rate,
    squared_errors,
    study_density,
)

OPTIONS = DensityOptions(features=2, sample_sizes=(50, 400), ratios=(1, 100), repeats=15)


@pytest.fixture(scope="module")
def studied():
    lines = []
    return study_density(OPTIONS, say=lines.append), lines


def without_times(results):
    return [
        {**curve, "points": [{**point, "seconds": 0} for point in curve["points"]]} for curve in results["curves"]
    ]


class TestParts:
    def test_the_truth_is_a_density(self):
        torch.manual_seed(0)
        variances = torch.linalg.eigvalsh(torch.stack([draw_covariance(3) for _ in range(100)]))
        assert 10**-0.5 < variances.min() < 0.33
        assert 3.0 < variances.max() < 10**0.5
        covariance = draw_covariance(3)
        truth, x = gaussian_estimate(covariance), torch.randn(5, 3, dtype=torch.float64)
        log_phi = -0.5 * torch.einsum("ni,ij,nj->n", x, truth.precision, x)
        exact = MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(x)
        torch.testing.assert_close(log_phi - truth.log_partition, exact)

    def test_maximum_likelihood_is_a_maximum(self):
        x = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        precision = maximum_likelihood(x).precision.requires_grad_()
        likelihood = MultivariateNormal(torch.zeros(2, dtype=torch.float64), precision_matrix=precision).log_prob(x)
        (gradient,) = torch.autograd.grad(likelihood.sum(), precision)
        assert gradient.abs().max() < 1e-10

    def test_squared_errors(self):
        truth = Estimate(torch.zeros(2, 2), torch.tensor(1.0))
        found = Estimate(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor(4.0))
        assert squared_errors(found, truth) == {"precision": 2.5, "log_partition": 9.0}

    def test_the_rate_is_the_exponent(self):
        assert rate([10, 100, 1000], [3.0, 0.3, 0.03]) == pytest.approx(-1)
        assert rate([10], [3.0]) is None

    @pytest.mark.parametrize("noise", NOISES)
    def test_noise_that_is_near_enough_finds_the_truth(self, noise):
        options = DensityOptions(features=2, sample_sizes=(2000,), ratios=(20,), noise=noise)
        with torch.random.fork_rng():
            truth, found = estimates(options, 0, 2000)
        variance = (truth.precision.diagonal().outer(truth.precision.diagonal()) + truth.precision.square()).mean()
        for estimate in found.values():
            errors = squared_errors(estimate, truth)
            assert errors["precision"] < 9 * variance / 2000
            assert errors["log_partition"] < 16 * 1.0 / 2000  # d / 2 over n is maximum likelihood's variance


class TestStudy:
    def test_errors_fall_with_n_and_meet_as_k_grows(self, studied):
        results, _ = studied
        likelihood, one, hundred = results["curves"]
        assert [curve["k"] for curve in results["curves"]] == [None, 1, 100]
        for name in ("precision", "log_partition"):
            median = [[point[name]["median"] for point in curve["points"]] for curve in results["curves"]]
            assert all(few > many for few, many in median)
            assert one["points"][1][name]["median"] > 1.2 * likelihood["points"][1][name]["median"]
            assert all(
                point[name]["low"] <= point[name]["median"] <= point[name]["high"] for point in hundred["points"]
            )
        assert report.excess(results, hundred, "precision") == pytest.approx(1, abs=0.25)
        assert likelihood["rate"]["precision"] == pytest.approx(-1, abs=0.4)

    def test_a_line_for_each_sample_size(self, studied):
        results, lines = studied
        assert len(lines) == 2
        for i, line in enumerate(lines):
            assert line.startswith(f"n = {OPTIONS.sample_sizes[i]}, ")
            assert f"NCE, k = 100: {results['curves'][2]['points'][i]['precision']['median']:.2g}" in line

    def test_the_same_seed_measures_the_same(self, studied):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        few = DensityOptions(**{**vars(OPTIONS), "sample_sizes": (50,)})
        again = without_times(study_density(few))
        assert torch.equal(torch.get_rng_state(), before)
        for curve, larger in zip(again, without_times(studied[0]), strict=True):
            assert curve["points"] == larger["points"][:1]
        other = without_times(study_density(DensityOptions(**{**vars(few), "seed": 1})))
        assert other[0]["points"] != again[0]["points"]

    def test_the_table_says_what_was_measured(self, studied):
        results, _ = studied
        cells = dict(zip(report.columns(results), report.rows(results)[1], strict=True))
        curve = results["curves"][1]
        likeliest, found = (
            [point["precision"]["median"] for point in c["points"]] for c in (results["curves"][0], curve)
        )
        assert cells["estimator"] == "NCE, k = 1"
        assert cells["n = 400"] == f"{found[-1]:.2g}"
        times = math.sqrt(found[0] / likeliest[0] * found[1] / likeliest[1])
        assert cells["x ML"] == f"{times:.2f}"
        assert f"precision, {times:.2f} with k = 1, " in report.verdict(results)
        assert report.terminal_table(results).row_count == 6
        unconverged = sum(point["unconverged"] for curve in results["curves"] for point in curve["points"])
        assert (f"{unconverged} fits had not converged" in report.legend(results)) == (unconverged > 0)

    def test_files(self, studied, tmp_path):
        results, _ = studied
        folder = tmp_path / "out"
        report.write_study(results, folder)
        assert sorted(path.name for path in folder.iterdir()) == ["density.csv", "density.png", "results.json"]
        assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
        with (folder / "density.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == 3 * 2 * 2
        assert float(lines[0]["median"]) == results["curves"][0]["points"][0]["precision"]["median"]
        assert (folder / "density.png").read_bytes().startswith(b"\x89PNG")
        with pytest.raises(ValueError, match="holds results already"):
            report.check_free(folder)

    def test_the_figure_has_every_curve(self, studied):
        results, _ = studied
        for axes, name in zip(report.draw(results).axes, ("precision", "log_partition"), strict=True):
            assert len(axes.lines) == 3
            for line, curve in zip(axes.lines, results["curves"], strict=True):
                assert list(line.get_ydata()) == [point[name]["median"] for point in curve["points"]]

    def test_one_sample_size_has_no_rate(self):
        options = DensityOptions(features=1, sample_sizes=(50,), ratios=(2,), repeats=2)
        results = study_density(options)
        assert report.rows(results)[0][-2] == "-"
        assert report.draw(results).axes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features: expected an integer of at least 1, got 0"),
        ({"sample_sizes": ()}, r"sample_sizes: expected rising numbers, got \(\)"),
        ({"sample_sizes": (100, 50)}, r"sample_sizes: expected rising numbers, got \(100, 50\)"),
        ({"sample_sizes": (16, 50)}, "sample_sizes: expected more than 16, .* 5 features and log Z, got 16"),
        ({"ratios": (0, 1)}, "ratios: expected an integer of at least 1, got 0"),
        ({"ratios": (1, 1)}, r"ratios: expected rising numbers, got \(1, 1\)"),
        ({"repeats": 0}, "repeats: expected an integer of at least 1, got 0"),
        ({"noise": "cauchy"}, "noise: expected one of standard-normal, gaussian, uniform, got 'cauchy'"),
        ({"seed": -1}, r"seed: expected an integer of at least 0 and less than 2\*\*63, got -1"),
        ({"seed": 2**63}, "seed: expected an integer of at least 0 .*, got 9223372036854775808"),
        ({"seed": math.pi}, "seed: expected an integer of at least 0 .*, got 3.14"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DensityOptions(**options)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--k=0", "k: expected an integer of at least 1, got 0"),
        ("--k=10,1", "k: expected rising numbers, got (10, 1)"),
        ("--sample-sizes=16", "sample_sizes: expected more than 16"),
        ("--seed=99999999999999999999999", "seed: expected an integer of at least 0 and less than 2**63"),
    ],
)
def test_the_command_names_the_option(option, message, tmp_path, capsys):
    assert run(["study", "density", option, f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vastmax: {message}")
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_fit_that_ends_nowhere_is_one_line(tmp_path, capsys, monkeypatch):
    def diverge(*_):
        raise FloatingPointError("fit: expected to end at a finite loss and parameters, got a loss of nan")

    monkeypatch.setattr("vastmax.study.density.fit", diverge)
    assert run(["study", "density", "--sample-sizes=20", "--repeats=1", f"--out={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err.startswith("vastmax: fit: expected to end at a finite loss")


def test_an_interruption_is_said(tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vastmax.study.density.fit", stop)
    assert run(["study", "density", "--sample-sizes=20", "--repeats=1", f"--out={tmp_path / 'out'}"]) == 130
    assert capsys.readouterr().err == "vastmax: interrupted\n"
    assert not (tmp_path / "out").exists()
