"""A study of the softmax bottleneck: bounds of rank, what is within reach, its files and its errors."""

import csv
import json

import pytest
import torch

from vastmax import heads
from vastmax.data import TokenBatches
from vastmax.metrics.log_prob_rank import log_prob_rank, log_prob_spectrum
from vastmax.study import bottleneck_report as report
from vastmax.study.bottleneck import (
    BottleneckOptions,
    build_heads,
    draw_truth,
    fit,
    measure,
    rank_bound,
    rank_of,
    run_hidden,
    study_bottleneck,
    study_runs,
)
from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.corpus import read_streams
from vastmax.tasks.lm.train import EVAL_LENGTH, EVAL_STRANDS, load_run, train

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
OPTIONS = BottleneckOptions(mixtures=(2,), widths=(1, 2, 3), contexts=8, num_classes=12, steps=60)


@pytest.fixture(scope="module")
def studied():
    lines = []
    return study_bottleneck(OPTIONS, say=lines.append), lines


def without_times(results):
    return [
        {**curve, "points": [{**point, "seconds": 0} for point in curve["points"]]} for curve in results["curves"]
    ]


def fitted(name, width, options):
    torch.manual_seed(0)
    return fit(build_heads(options)[name](width), draw_truth(options).exp(), steps=options.steps)


class TestRank:
    @pytest.mark.parametrize("shape", [(9, 30), (30, 9), (9, 9)])
    def test_one_decomposition_says_what_the_metrics_say(self, shape):
        generator = torch.Generator().manual_seed(0)
        hidden, weight = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in shape)
        log_prob = (hidden @ weight.T).log_softmax(-1)
        spectrum, rank = rank_of(log_prob)
        expected = log_prob_spectrum(log_prob)
        torch.testing.assert_close(spectrum, expected / expected[0])
        assert rank == log_prob_rank(log_prob) == 5

    @pytest.mark.parametrize("sizes", [(40, 30), (30, 40)])
    @pytest.mark.parametrize("bias", [True, False])
    def test_a_softmax_has_its_bound_and_what_has_none_passes_it(self, bias, sizes):
        rows, classes = sizes
        torch.manual_seed(0)
        hidden = torch.randn(rows, 5, dtype=torch.float64)
        options = {"bias": bias, "dtype": torch.float64}
        plain = [
            heads.Softmax(5, classes, **options),
            heads.SampledSoftmax(5, classes, num_samples=3, **options),
            heads.MixtureOfSoftmaxes(5, classes, 1, **options),
        ]
        bent = [heads.SigSoftmax(5, classes, **options), heads.MixtureOfSoftmaxes(5, classes, 2, **options)]
        with torch.no_grad():
            for head in plain:
                assert rank_of(head.log_prob(hidden)).rank == rank_bound(head) == 6 + bias
            for head in bent:
                assert rank_bound(head) is None
                assert rank_of(head.log_prob(hidden)).rank > 20


class TestTruth:
    @pytest.mark.parametrize(("contexts", "classes"), [(6, 9), (9, 6), (7, 7)])
    def test_its_rank_is_full_and_less_one_without_means(self, contexts, classes):
        truth = draw_truth(BottleneckOptions(contexts=contexts, num_classes=classes))
        torch.testing.assert_close(truth.exp().sum(-1), torch.ones(contexts, dtype=torch.float64))
        assert rank_of(truth).rank == min(contexts, classes)
        centred = truth - truth.mean(0, keepdim=True)
        assert log_prob_rank(centred - centred.mean(1, keepdim=True)) == min(contexts, classes) - 1

    def test_scale_and_seed(self):
        truth = draw_truth(BottleneckOptions(contexts=50, num_classes=200, scale=3.0))
        assert truth.std(1).mean().item() == pytest.approx(3.0, rel=0.02)
        other = draw_truth(BottleneckOptions(contexts=50, num_classes=200, scale=3.0, seed=1))
        assert not torch.equal(truth, other)


class TestFit:
    @pytest.mark.parametrize(("contexts", "classes"), [(5, 8), (8, 5), (6, 6)])
    def test_enough_width_reaches_the_truth_and_one_less_does_not(self, contexts, classes):
        """The truth without its means has rank min(C, V) - 1: at most d of it are within a softmax's reach."""
        options = BottleneckOptions(contexts=contexts, num_classes=classes)
        truth, full = draw_truth(options).exp(), min(contexts, classes)
        enough, less = (measure(fitted("softmax", width, options), truth) for width in (full - 1, full - 2))
        assert enough["kl"] < 1e-12
        assert less["kl"] > 1e-3
        assert enough["rank"] == less["rank"] == full  # of d = full - 2: d + 2, and yet it lacks a direction

    def test_the_divergence_and_the_parameters(self):
        head, hidden = fitted("mixture of 2", 3, OPTIONS)
        truth = draw_truth(OPTIONS)
        found = measure(fitted("mixture of 2", 3, OPTIONS), truth.exp())
        with torch.no_grad():
            expected = (truth.exp() * (truth - head.log_prob(hidden))).sum(-1).mean()
        assert found["kl"] == pytest.approx(expected.item(), rel=1e-12)
        contexts, rows, gate, projection = 8 * 3, 12 * 3 + 12, 2 * 3, 2 * 3 * 3
        assert found["parameters"] == contexts + rows + gate + projection
        assert hidden.dtype == torch.float64


class TestStudy:
    def test_ranks_and_divergences(self, studied):
        results, _ = studied
        assert results["true_rank"] == 8
        assert [curve["head"] for curve in results["curves"]] == ["softmax", "sigsoftmax", "mixture of 2"]
        softmax, *bent = (curve["points"] for curve in results["curves"])
        assert [point["rank"] for point in softmax] == [point["rank_bound"] for point in softmax] == [3, 4, 5]
        for points in bent:
            assert all(point["rank"] > same["rank"] for point, same in zip(points, softmax, strict=True))
            assert all(point["rank_bound"] is None for point in points)
        kl = [point["kl"] for point in softmax]
        assert kl == sorted(kl, reverse=True)
        assert kl[-1] > 0.01

    def test_a_line_for_each_head(self, studied):
        results, lines = studied
        assert len(lines) == 3
        for line, curve in zip(lines, results["curves"], strict=True):
            kl = ", ".join(f"{point['kl']:.2g}" for point in curve["points"])
            assert line == f"{curve['head']}: KL {kl} nats at d = 1, 2, 3"

    def test_the_same_seed_measures_the_same(self, studied):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        few = BottleneckOptions(**{**vars(OPTIONS), "heads": ("mixture",), "widths": (2,)})
        (again,) = without_times(study_bottleneck(few))
        assert torch.equal(torch.get_rng_state(), before)
        assert again["points"] == without_times(studied[0])[2]["points"][1:2]
        (other,) = without_times(study_bottleneck(BottleneckOptions(**{**vars(few), "seed": 1})))
        assert other["points"] != again["points"]


def curve(name, *points):
    return {"head": name, "points": [{"kl": kl, "parameters": parameters} for kl, parameters in points]}


class TestReport:
    def test_the_softmax_at_equal_parameters(self):
        softmax = curve("softmax", (1.0, 10), (0.01, 1000))["points"]
        found = [report.at_equal_parameters(softmax, n) for n in (9, 10, 100, 1000, 1001)]
        assert found == [None, pytest.approx(1.0), pytest.approx(0.1), pytest.approx(0.01), None]

    def test_the_excess_is_a_median_over_what_compares(self):
        results = {"curves": [curve("softmax", (1.0, 10), (0.1, 100), (0.01, 1000))]}
        points = curve("other", (0.5, 10), (0.03, 1000), (0.02, 2000))["points"]
        assert report.excess(results, points, equal="width") == pytest.approx(0.5)
        assert report.excess(results, points, equal="parameters") == pytest.approx((0.5 + 3) / 2)
        assert report.excess(results, curve("other", *[(1.0, 5)] * 3)["points"], equal="parameters") is None
        assert report.excess({"curves": []}, points, equal="width") is None

    def test_the_table_says_what_was_measured(self, studied):
        results, _ = studied
        cells = dict(zip(report.columns(results), report.rows(results)[0], strict=True))
        point = results["curves"][0]["points"][1]
        assert cells == {"": "KL", "head": "softmax", **cells}
        assert cells["d = 2"] == f"{point['kl']:.2g}"
        assert [row[3] for row in report.rows(results)[3:6]] == [
            "4",
            *(str(c["points"][1]["rank"]) for c in results["curves"][1:]),
        ]
        assert report.terminal_table(results).row_count == 9
        assert "d = 7 has 0 within reach" in report.legend(results)
        assert "softmax: rank 3 to 5 of 8" in report.verdict(results)
        ratio = report.excess(results, results["curves"][2]["points"], equal="width")
        assert f"{ratio:.2f} times the softmax's at equal width (median)" in report.verdict(results)

    def test_files(self, studied, tmp_path):
        results, _ = studied
        folder = tmp_path / "out"
        report.check_free(folder)
        report.write_study(results, folder)
        assert sorted(path.name for path in folder.iterdir()) == [
            "bottleneck.csv",
            "bottleneck.png",
            "results.json",
        ]
        assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
        with (folder / "bottleneck.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == 3 * 3
        assert (lines[4]["head"], lines[4]["width"]) == ("sigsoftmax", "2")
        assert float(lines[4]["kl"]) == results["curves"][1]["points"][1]["kl"]
        assert (folder / "bottleneck.png").read_bytes().startswith(b"\x89PNG")
        with pytest.raises(ValueError, match="holds results already"):
            report.check_free(folder)

    def test_a_figure_that_fails_leaves_none(self, studied, tmp_path, monkeypatch):
        def stop(results):
            raise KeyboardInterrupt

        monkeypatch.setattr(report, "draw", stop)
        with pytest.raises(KeyboardInterrupt):
            report.write_study(studied[0], tmp_path)
        assert not (tmp_path / "bottleneck.png").exists()
        assert not (tmp_path / "results.json").exists()

    def test_the_figure_has_every_curve(self, studied):
        results, _ = studied
        by_width, by_parameters, ranks = report.draw(results).axes
        for i, found in enumerate(results["curves"]):
            for axes, x, y in (
                (by_width, "width", "kl"),
                (by_parameters, "parameters", "kl"),
                (ranks, "width", "rank"),
            ):
                line = axes.lines[i]
                assert list(line.get_xdata()) == [point[x] for point in found["points"]]
                assert list(line.get_ydata()) == [point[y] for point in found["points"]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bottleneck")
    words = torch.randint(30, (3500, 8), generator=torch.Generator().manual_seed(0)).tolist()
    text = folder / "words.txt"
    text.write_text("\n".join(" ".join(f"w{w}" for w in line) for line in words), encoding="utf-8")
    config = LMConfig(data=str(text), epochs=0.02, width=6, batch_size=4, seq_len=8, points=1, point_tokens=50)
    streams = read_streams(config)
    for head in ("exact", "sigsoftmax", "mixture"):
        train(config, head, folder / head, streams)
    return [folder / head for head in ("exact", "sigsoftmax", "mixture")]


class TestRuns:
    def test_a_softmax_stops_at_d_plus_two(self, runs, tmp_path):
        lines = []
        results = study_runs(runs, rows=40, say=lines.append)
        exact, *bent = results["runs"]
        classes = exact["num_classes"]
        assert classes > 20
        assert (exact["rank"], exact["rank_bound"]) == (8, 8)
        assert lines[0] == f"{runs[0]}: Softmax of d = 6, rank 8, at most 8"
        for run in bent:
            assert run["rank"] > 20
            assert run["rank_bound"] is None
        assert all(len(run["spectrum"]) == min(40, classes) for run in results["runs"])
        assert f"rank 8 of {min(40, classes)}, at d + 2 = 8." in report.verdict(results)
        assert f"rank {bent[0]['rank']} of {min(40, classes)}, above d + 2 = 8." in report.verdict(results)
        cells = dict(zip(report.columns(results), report.rows(results)[1], strict=True))
        assert (cells["head"], cells["d"], cells["bound"]) == ("SigSoftmax", "6", "-")
        assert report.terminal_table(results).row_count == 3
        assert "40 contexts" in report.heading(results)
        report.write_study(results, tmp_path / "out")
        with (tmp_path / "out" / "bottleneck.csv").open(newline="") as file:
            written = list(csv.DictReader(file))
        assert [float(line["singular_value"]) for line in written[: min(40, classes)]] == exact["spectrum"]
        (axes,) = report.draw(results).axes
        assert [line.get_label().split(", rank ")[1] for line in axes.lines[:3]] == [
            f"{run['rank']}" for run in results["runs"]
        ]

    def test_the_contexts_are_the_first_of_the_test_text(self, runs):
        """One pass over whole strands has the same hidden rows: batch after batch, the state goes on."""
        config, vocabulary, model = load_run(runs[0])
        model.eval()
        test = read_streams(config, vocabulary).test
        strands = TokenBatches(test, EVAL_STRANDS, len(test), drop_last=False)
        ((tokens, following),) = strands
        with torch.no_grad():
            rows, _ = model.body(tokens, None)
        counted = following != -100
        parts = [
            part[here] for part, here in zip(rows.split(EVAL_LENGTH, 1), counted.split(EVAL_LENGTH, 1), strict=True)
        ]
        assert len(parts) == 2
        expected = torch.cat(parts).double()
        head, hidden = run_hidden(runs[0], len(expected))
        assert hidden.dtype == head.weight.dtype == torch.float64
        torch.testing.assert_close(hidden, expected, atol=1e-6, rtol=1e-5)

    def test_single_precision_has_noise_for_a_rank(self, runs):
        """Why log-probabilities are made again in double precision."""
        head, hidden = run_hidden(runs[0], 100)
        with torch.no_grad():
            assert rank_of(head.log_prob(hidden)).rank == 8
            assert rank_of(head.float().log_prob(hidden.float()).double()).rank > 8

    def test_bad_input_is_said_before_the_work(self, runs, tmp_path, monkeypatch):
        monkeypatch.setattr("vastmax.study.bottleneck.rank_of", None)
        with pytest.raises(ValueError, match=r"rows: expected more than d \+ 2 = 8 for .*, got 8"):
            study_runs(runs, rows=8)
        with pytest.raises(ValueError, match="rows: expected an integer of at least 1, got 0"):
            study_runs(runs, rows=0)
        with pytest.raises(ValueError, match=r"rows: expected at most \d+, the tokens of test text, got 1000000"):
            study_runs(runs, rows=1_000_000)
        with pytest.raises(FileNotFoundError, match="expected the folder of a run"):
            study_runs([runs[0], tmp_path], rows=40)
        with pytest.raises(ValueError, match="run: expected distinct folders, got none"):
            study_runs([])
        with pytest.raises(ValueError, match="run: expected distinct folders"):
            study_runs([runs[0], runs[0] / ".." / "exact"])

    def test_too_few_classes_for_a_bottleneck(self, runs, monkeypatch):
        from vastmax.study import bottleneck

        config, vocabulary, model = bottleneck.load_run(runs[0])
        model.head = heads.Softmax(6, 8)
        monkeypatch.setattr(bottleneck, "load_run", lambda folder: (config, vocabulary, model))
        with pytest.raises(ValueError, match=r"run: expected more than d \+ 2 = 8 classes in .*, got 8"):
            run_hidden(runs[0], 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ()}, "heads: expected distinct names out of softmax, sigsoftmax, mixture, got none"),
        ({"heads": ("softmax", "softmax")}, "heads: expected distinct names"),
        ({"heads": ("nce",)}, "heads: expected one of softmax, sigsoftmax, mixture, got 'nce'"),
        ({"mixtures": (1, 2)}, "mixtures: expected at least 2 components, for one is the softmax, got 1"),
        ({"mixtures": (4, 2)}, r"mixtures: expected rising numbers, got \(4, 2\)"),
        ({"widths": ()}, r"widths: expected rising numbers, got \(\)"),
        ({"widths": (0, 2)}, "widths: expected an integer of at least 1, got 0"),
        ({"widths": (-2,)}, "widths: expected an integer of at least 1, got -2"),
        ({"widths": (4, 2)}, r"widths: expected rising numbers, got \(4, 2\)"),
        ({"contexts": 1}, "contexts: expected at least 2, got 1"),
        ({"num_classes": 1}, "num_classes: expected at least 2, got 1"),
        ({"num_classes": 0}, "num_classes: expected an integer of at least 1, got 0"),
        ({"scale": 0.0}, "scale: expected a finite number greater than 0, got 0.0"),
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        ({"seed": -1}, r"seed: expected an integer of at least 0 and less than 2\*\*63, got -1"),
        ({"seed": 10**23}, "seed: expected an integer of at least 0 .*, got 1000"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        BottleneckOptions(**options)
