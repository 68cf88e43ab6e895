"""A study from the command to its files: what it measures, its table, its errors, and runs as its subject."""

import csv
import itertools
import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from vastmax.commands import run
from vastmax.study.estimator_options import ESTIMATORS, SAMPLERS, StudyOptions
from vastmax.study.estimators import study_estimators
from vastmax.study.estimators_report import answer, columns, rows, share, verdict
from vastmax.study.implied import implied_samples, unit_gain
from vastmax.study.problems import run_problem, synthetic_problem
from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.corpus import read_streams
from vastmax.tasks.lm.train import EVAL_LENGTH, EVAL_STRANDS, load_run, train

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
CLI_OPTIONS = ["--rows=8", "--num-classes=60", "--width=4", "--repeats=3", "--k=1,10,60,200"]


@pytest.fixture(scope="module")
def studied():
    problem = synthetic_problem(8, 60, 4)
    options = StudyOptions(samplers=tuple(SAMPLERS), num_samples=(5, 60, 200), repeats=10, accuracy=0.5)
    return problem, options, study_estimators(problem, options)


def test_numbers_for_a_reader():
    shares = {
        0.0: "0%",
        1e-7: "<0.1%",
        0.0712: "7.1%",
        0.0996: "10%",
        1.234: "123%",
        958.3: "958x",
        1.3e4: "13.0kx",
    }
    assert {value: share(value) for value in shares} == shares
    answers = {
        (1, "at most"): "<=1",
        (5288, "between"): "5,300",
        (91_234, "beyond"): "~91,000",
        (7_160_000, "beyond"): "~7.2M",
        (10**7, "more than"): ">10M",
        (None, "never"): "(34%)",
    }
    assert {key: answer({"num_samples": key[0], "how": key[1], "bias": 0.342}) for key in answers} == answers


class TestStudy:
    def test_each_estimator_is_measured_with_each_sampler_that_draws_for_it(self, studied):
        *_, results = studied
        distinct_only, iid_only = {"top-and-tail"}, {"tree-guided", "random-features", "hard-negatives"}
        without = {("sampled", name) for name in distinct_only} | {("sampled-distinct", name) for name in iid_only}
        found = [(curve["estimator"], curve["sampler"]) for curve in results["curves"]]
        assert set(found) == set(itertools.product(ESTIMATORS, SAMPLERS)) - without
        assert len(found) == len(set(found))
        for curve in results["curves"]:
            distinct = curve["estimator"] == "sampled-distinct" or curve["sampler"] in distinct_only
            assert [point["k"] for point in curve["points"]] == ([5, 60] if distinct else [5, 60, 200])

    def test_the_implied_numbers_come_from_the_points(self, studied):
        _, options, results = studied
        noise = results["problem"]["mini_batch_noise"]
        for found in results["curves"]:
            limit = 60 if found["estimator"] == "sampled-distinct" else None
            for part in ("class_rows", "hidden"):
                points = [(point["k"], point[part]) for point in found["points"]]
                assert found["implied"][part] == vars(implied_samples(points, options.accuracy, limit=limit))
            points = [(point["k"], unit_gain(point["class_rows"])) for point in found["points"]]
            assert found["implied"]["mini_batch_noise"] == vars(implied_samples(points, noise, limit=limit))

    def test_the_same_seed_measures_the_same(self, studied):
        problem, options, results = studied

        def figures(results):
            return [{k: v for k, v in p.items() if k != "ms"} for c in results["curves"] for p in c["points"]]

        few = StudyOptions(**{**vars(options), "estimators": ("sampled", "nce"), "samplers": ("uniform",)})
        again = figures(study_estimators(problem, few))
        assert again == figures(study_estimators(problem, few))
        assert all(point in figures(results) for point in again)

    def test_the_table_says_what_was_measured(self, studied):
        *_, results = studied
        cells = dict(zip(columns(results), rows(results)[0], strict=True))
        curve = results["curves"][0]
        assert (cells["estimator"], cells["sampler"]) == (curve["estimator"], curve["sampler"])
        assert cells["k = 5"] == f"{100 * curve['points'][0]['class_rows']['error']:.0f}%"
        table = {(row[0], row[1]): row for row in rows(results)}
        assert table["sampled-distinct", "uniform"][columns(results).index("k = 200")] == "-"
        assert table["one-vs-each", "unigram"][-2].startswith("(")
        reached = [c["implied"]["class_rows"]["num_samples"] for c in results["curves"]]
        best = results["curves"][reached.index(min(k for k in reached if k is not None))]
        assert f"{best['estimator']} with {best['sampler']} noise" in verdict(results)
        nce = max(c["points"][-1]["class_rows"]["cosine"] for c in results["curves"] if c["estimator"] == "nce")
        assert f"to {nce:.3f} at k = 200" in verdict(results) or f"to {nce:.3f} at k = 60" in verdict(results)

    def test_the_command_from_end_to_end(self, tmp_path, capsys):
        folder = tmp_path / "out"
        assert run(["study", "estimators", *CLI_OPTIONS, f"--out={folder}"]) == 0
        out = capsys.readouterr().out
        assert "sampled-distinct" in out
        assert "Fewest samples for an error of 10%" in out
        results = json.loads((folder / "results.json").read_text())
        with (folder / "estimators.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        points = [point for curve in results["curves"] for point in curve["points"]]
        assert len(lines) == 2 * len(points)
        assert float(lines[1]["error"]) == points[0]["hidden"]["error"]
        assert (folder / "estimators.png").read_bytes().startswith(b"\x89PNG")
        assert sorted(path.name for path in folder.iterdir()) == [
            "estimators.csv",
            "estimators.png",
            "results.json",
        ]
        assert run(["study", "estimators", *CLI_OPTIONS, f"--out={folder}"]) == 2
        assert "holds results already" in capsys.readouterr().err

    def test_an_interruption_leaves_nothing(self, tmp_path, monkeypatch):
        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("vastmax.study.estimators.measure", stop)
        assert run(["study", "estimators", *CLI_OPTIONS, f"--out={tmp_path / 'out'}"]) == 130
        assert not (tmp_path / "out").exists()


BAD_OPTIONS = [
    (["--rows=1"], "rows: expected at least 2, so that a mini-batch has noise, got 1"),
    (["--rows=0"], "rows: expected an integer of at least 1, got 0"),
    (["--num-classes=1"], "num_classes: expected at least 2, got 1"),
    (["--num-classes=0"], "num_classes: expected an integer of at least 1, got 0"),
    (["--accuracy=0"], "accuracy: expected a finite number greater than 0, got 0.0"),
    (["--accuracy=nan"], "accuracy: expected a finite number greater than 0, got nan"),
    (["--repeats=1"], "repeats: expected at least 2"),
    (["--k=10,1"], "k: expected rising numbers of samples, got (10, 1)"),
    (["--k=0,1"], "k: expected an integer of at least 1, got 0"),
    (["--k=1,ten"], "k: expected whole numbers with commas between, got '1,ten'"),
    (["--estimators=sampled,negative"], "estimators: expected one of sampled, sampled-distinct, importance"),
    (["--estimators=nce,nce"], "estimators: expected distinct names out of"),
    (["--estimators=,"], "estimators: expected distinct names out of"),
    (["--samplers=zipf"], "samplers: expected one of unigram, unigram-0.75"),
    (["--samplers=all,uniform"], "samplers: expected one of"),
    (["--estimators=sampled", "--samplers=top-and-tail"], "samplers: expected one that draws what sampled takes"),
    (["--estimators=sampled-distinct", "--k=61"], "for k of at most 60 where classes are distinct"),
    (["--run={here}"], "num_classes: expected with a made-up model, got 60 beside --run"),
    (["--seed=99999999999999999999999"], "seed: expected an integer of at least 0 and less than 2**63, got 9999"),
    (["--out={file}"], "out: expected the name of a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_OPTIONS, ids=[" ".join(a) for a, _ in BAD_OPTIONS])
def test_bad_input_is_one_line_and_status_two(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    given = [argument.format(here=tmp_path, file=tmp_path / "file") for argument in arguments]
    assert run(["study", "estimators", *CLI_OPTIONS, *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    words = torch.randint(30, (3500, 8), generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text("\n".join(" ".join(f"w{w * w // 30}" for w in line) for line in words), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["exact", "negative"])
def trained(request, text, tmp_path_factory):
    config = LMConfig(
        data=str(text), epochs=0.03, width=8, num_samples=10, batch_size=4, seq_len=8, points=1, point_tokens=50
    )
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return folder, train(config, request.param, folder, read_streams(config))


class TestRuns:
    def test_the_problem_is_the_run_s_own_validation(self, trained):
        folder, result = trained
        assert result["valid"]["tokens"] > EVAL_STRANDS * EVAL_LENGTH  # more than one batch: the state goes on
        problem = run_problem(folder, result["valid"]["tokens"])
        loss = cross_entropy(problem.hidden @ problem.weight.T + problem.bias, problem.target)
        assert loss.exp().item() == pytest.approx(result["valid"]["perplexity"], rel=1e-5)
        assert (problem.counts.diff() <= 0).all()
        assert problem.target.bincount(minlength=problem.num_classes)[:5].sum() > 0.3 * problem.num_rows
        with pytest.raises(ValueError, match=f"rows: expected at most {problem.num_rows}"):
            run_problem(folder, problem.num_rows + 1)

    def test_the_command(self, trained, tmp_path, capsys):
        options = ["--rows=20", "--repeats=2", "--k=1,10", f"--out={tmp_path / 'out'}"]
        assert run(["study", "estimators", f"--run={trained[0]}", *options]) == 0
        assert json.loads((tmp_path / "out" / "results.json").read_text())["problem"]["rows"] == 20
        assert run(["study", "estimators", f"--run={tmp_path}", "--rows=20"]) == 2
        assert "expected the folder of a run" in capsys.readouterr().err

    def test_a_head_without_a_row_per_class(self, trained, monkeypatch):
        config, vocabulary, model = load_run(trained[0])
        model.head = torch.nn.Identity()
        monkeypatch.setattr("vastmax.study.problems.load_run", lambda folder: (config, vocabulary, model))
        with pytest.raises(ValueError, match="run: expected a head with one row of weight per class, got Identity"):
            run_problem(trained[0], 10)
