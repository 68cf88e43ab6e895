"""The comparison: its table against its parts, its files, and going on after an interruption."""

import json
import random
import re
from dataclasses import replace

import pytest
import torch

from vastmax.commands import run
from vastmax.study.compare import compare_language_models
from vastmax.study.memory import peak_memory
from vastmax.study.report import COLUMNS, rows, verdict, write_report
from vastmax.tasks.lm.config import LMConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
SMALL = {"width": 8, "num_samples": 20, "batch_size": 4, "seq_len": 8, "points": 2, "point_tokens": 100}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    rng = random.Random(0)
    lines = (" ".join(f"w{rng.randint(0, 99)}" for _ in range(8)) for _ in range(300))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def compared(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "out"
    said = []
    config = LMConfig(data=str(text), epochs=0.5, **SMALL)
    results = compare_language_models(config, ["exact", "sampled", "nce", "negative"], folder, say=said.append)
    return folder, results, said, config


def test_every_head_gets_the_same_tokens(compared):
    _, results, said, _ = compared
    assert len({(head["tokens"], head["parameters"]) for head in results["heads"]}) == 1
    assert [head["head"] for head in results["heads"]] == ["exact", "sampled", "nce", "negative"]
    assert "classes" in said[0]


def test_the_table_says_what_was_measured(compared):
    _, results, _, _ = compared
    exact, sampled = results["heads"][:2]
    cells = dict(zip(COLUMNS, rows(results)[1], strict=True))
    assert cells["test ppl"] == f"{sampled['test']['perplexity']:,.1f}"
    assert cells["speed-up"] == f"{sampled['tokens_per_second'] / exact['tokens_per_second']:.1f}x"
    share = sampled["test"]["perplexity"] / exact["test"]["perplexity"] - 1
    assert cells["vs exact"] == f"{100 * share:+.1f}%"
    assert rows(results)[0][COLUMNS.index("speed-up")] == "1.0x"
    best = min(results["heads"], key=lambda head: head["test"]["perplexity"])
    assert f"Lowest test perplexity: {best['head']}" in verdict(results)
    without = {**results, "heads": results["heads"][1:]}
    assert rows(without)[0][COLUMNS.index("speed-up")] == "-"


def test_the_report_needs_nothing_beside_itself(compared):
    folder, results, _, _ = compared
    report = write_report(results, folder)
    page = report.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for head in results["heads"]:
        assert f"<td>{head['head']}</td>" in page
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "results.json").read_text())["heads"] == results["heads"]


def test_a_comparison_goes_on_where_it_stopped(compared, text, tmp_path):
    folder, results, _, config = compared
    with pytest.raises(ValueError, match="holds a comparison already; add --resume"):
        compare_language_models(config, ["exact"], folder)
    (folder / "nce" / "result.json").rename(tmp_path / "aside.json")
    said = []
    again = compare_language_models(
        config, ["exact", "sampled", "nce", "negative"], folder, resume=True, say=said.append
    )
    assert said.count("exact: done before") == 1
    for one, other in zip(results["heads"], again["heads"], strict=True):
        assert one["test"] == other["test"]
        assert one["peak_bytes"] == other["peak_bytes"]


def test_old_results_do_not_pass_for_those_of_new_options(compared):
    folder, _, _, config = compared
    with pytest.raises(ValueError, match="exact was begun with another lr"):
        compare_language_models(replace(config, lr=0.5), ["exact"], folder, resume=True)
    result = (folder / "exact" / "result.json").read_text()
    (folder / "exact" / "result.json").write_text(result[:-20])
    with pytest.raises(ValueError, match=r"exact/result\.json: expected a result in JSON"):
        compare_language_models(config, ["exact"], folder, resume=True)
    (folder / "exact" / "result.json").write_text(result)


@pytest.mark.parametrize("heads", [[], ["exact", "exact"], ["exact", "softmax"]])
def test_unknown_heads(compared, heads, tmp_path):
    with pytest.raises(ValueError, match="heads: expected"):
        compare_language_models(compared[3], heads, tmp_path / "new")


def test_peak_memory_counts_what_is_held_at_once():
    def call():
        a = torch.ones(1000, 1000)
        b = torch.ones(1000, 500)
        del a, b
        return torch.ones(1000, 1000)

    assert peak_memory(call, torch.device("cpu")) == 4 * 1_500_000


CLI_ERRORS = [
    (["compare", "lm", "--data", "/no/such/file"], "/no/such/file: no such file or folder"),
    (["compare", "lm", "--data", "{text}", "--heads", "exact,softmax"], "heads: expected one of exact"),
    (
        ["compare", "lm", "--data", "{text}", "--lr", "-1"],
        "lr: expected a finite number greater than 0 and less than 1e+08, got -1.0",
    ),
    (["compare", "lm", "--data", "{text}", "--budget", "1s", "--epochs", "1"], "either epochs or budget"),
    (["compare", "lm", "--data", "{text}", "--resume"], "resume: expected --out"),
    (
        ["train", "lm", "--data", "{text}", "--head", "softmax"],
        "head: expected one of exact, sampled, nce, negative",
    ),
    (["train", "lm", "--data", "{text}", "--vocab-size", "5000"], "vocab_size"),
    (["train", "lm", "--data", "{empty}"], "empty.txt"),
    (["train", "lm", "--data", "{binary}"], "binary.txt"),
    (["train", "lm", "--data", "{one}"], "one.txt"),
    (["evaluate", "{here}"], "expected the folder of a run"),
    (["compare", "lm", "--data", "{text}", "--out", "{text}"], "out: expected the name of a folder"),
    (["train", "lm", "--data", "no[/b]such[red].txt"], "no[/b]such[red].txt: no such file or folder"),
    (["compare", "lm", "--budget", "soon"], "budget"),
    (
        ["compare", "lm", "--data", "{text}", "--heads", "exact,negative", "--sampler", "tree-guided"],
        "sampler: expected one whose q does not depend on the batch, got Mixture",
    ),
    (
        ["train", "lm", "--data", "{text}", "--head", "negative", "--sampler", "in-batch"],
        "sampler: expected one whose q does not depend on the batch, got InBatch",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), CLI_ERRORS, ids=[m for _, m in CLI_ERRORS])
def test_bad_input_is_one_line_and_status_two(text, arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "one.txt").write_text("word\n")
    places = {"text": text, "here": tmp_path, **{n: tmp_path / f"{n}.txt" for n in ("empty", "binary", "one")}}
    assert run([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error.replace("\n", "")
    assert "Traceback" not in error
    if "budget" not in message or "either" in message:  # typer frames its own messages
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_how_long_a_run_is_when_nothing_says_so(text, tmp_path, monkeypatch):
    """A comparison gets the same time, a training one pass: the latter resumes number for number."""
    seen = []

    def stop(config, *_, **__):
        seen.append((config.epochs, config.budget))
        raise ValueError("seen")

    monkeypatch.setattr("vastmax.study.compare.compare_language_models", stop)
    monkeypatch.setattr("vastmax.tasks.lm.train.train", stop)
    for kind in ("compare", "train"):
        for more in ([], ["--epochs=2"], ["--budget=5s"]):
            assert run([kind, "lm", f"--data={text}", f"--out={tmp_path}", *more]) == 2
    assert seen == [(None, 60.0), (2.0, None), (None, 5.0), (1.0, None), (2.0, None), (None, 5.0)]


def test_the_command_from_end_to_end(text, tmp_path, capsys):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    folder = tmp_path / "out"
    arguments = [
        "compare",
        "lm",
        f"--data={text}",
        "--budget=0.3s",
        "--heads=exact,sampled",
        f"--out={folder}",
        *options,
    ]
    assert run(arguments) == 0
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    assert run(["evaluate", str(folder / "sampled")]) == 0
    assert "perplexity" in capsys.readouterr().out
