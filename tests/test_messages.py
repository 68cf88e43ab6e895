"""What an error quotes of a value is cut to a line, however long the value: of every argument, option and file."""

import inspect
import itertools
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
import typer

from test_numbers import ENTRIES, HIDDEN, TARGET, D, V, name_of, public_callables
from vastmax import contrastive, data, heads, optim, samplers, trees
from vastmax.commands import app, run
from vastmax.study.bottleneck import BottleneckOptions
from vastmax.study.density import DensityOptions
from vastmax.study.estimator_options import StudyOptions
from vastmax.study.repeats import begin, read_kept
from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.tasks.classify.data import read_data
from vastmax.tasks.classify.labelled_text import read_labelled_text
from vastmax.tasks.contrast.config import ContrastConfig
from vastmax.tasks.lm.checkpoint import load_weights, read_checkpoint
from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.corpus import read_streams

MANY = 10_000
QUOTED = 90
"""Characters of a value that may stand in a row in a message: 80, and what joins them to the words around."""
ELSEWHERE = {"device"}
"""What torch reads, and quotes if it can't."""


class Verbose:
    """Something whose repr fills screens."""

    def __repr__(self):
        return "Verbose(" + "very " * MANY + ")"


LONG = {
    "text": "x" * MANY,
    "words": "xy z " * (MANY // 5),
    "names": ["exact", "sampled"] * (MANY // 2),
    "numbers": list(range(MANY)),
    "shares": (0.5,) * MANY,
    "digits": 10**4000,
    "an entry of digits": (10**4000, 0.5),
    "a dict": {f"key {i}": i for i in range(MANY)},
    "an object": Verbose(),
    "objects": [Verbose()] * 3,
    "a path": Path("folder/" * (MANY // 7)),
    "a sampler": samplers.Mixture([samplers.Uniform(V + 1)] * 500, [1.0] * 500),
}


TEXTS = {kind: {" ".join(str(value).split()), " ".join(repr(value).split())} for kind, value in LONG.items()}


def check_short(message, kind):
    """Raise unless a message is short, and says nothing of a value at length."""
    assert len(message) < 600, f"{len(message)} characters: {message[:300]}"
    seen = " ".join(message.split())
    runs = [seen[start : start + QUOTED] for start in range(len(seen) - QUOTED + 1)]
    assert not [piece for piece in runs if any(piece in text for text in TEXTS[kind])]


def complaint(call, *arguments, **options):
    """What a call says against its arguments; it may have no objection."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return str(error)
    return ""


def parameters_of(function):
    """The names that a callable takes, those that a class hands on to its bases included."""
    found = {}
    for kind in inspect.getmro(function) if inspect.isclass(function) else [function]:
        if not inspect.isclass(kind) or "__init__" in vars(kind):
            found |= inspect.signature(kind).parameters
    return [name for name, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def names_of(entry):
    takes = inspect.signature(entry.call).parameters
    handed_on = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    return parameters_of((entry.covers or entry.call) if handed_on else entry.call)


@pytest.mark.parametrize("entry", ENTRIES, ids=name_of)
def test_arguments_one_by_one(entry):
    given = dict(zip(inspect.signature(entry.call).parameters, entry.arguments, strict=False)) | entry.options
    for name, kind in itertools.product(set(names_of(entry)) - ELSEWHERE, LONG):
        check_short(complaint(entry.call, **(given | {name: LONG[kind]})), kind)


@pytest.mark.parametrize("function", list(public_callables()), ids=lambda function: function.__qualname__)
def test_all_arguments_at_once(function):
    names = [name for name in parameters_of(function) if name not in ELSEWHERE]
    for kind, value in LONG.items():
        check_short(complaint(function, **dict.fromkeys(names, value)), kind)


OPTIONS = [LMConfig, ClassifyConfig, ContrastConfig, StudyOptions, DensityOptions, BottleneckOptions]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.__name__)
def test_options(options):
    for name, kind in itertools.product(parameters_of(options), LONG):
        check_short(complaint(options, **{name: LONG[kind]}), kind)


def commands(group, words=()):
    """Every command of the command line, as the words that call it and its options."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield [*words, name], [option.opts[0] for option in command.params]


@pytest.mark.parametrize("kind", ["text", "words", "digits", "a path"])
@pytest.mark.parametrize(
    ("words", "names"), list(commands(typer.main.get_command(app))), ids=lambda said: " ".join(said[:3])
)
def test_the_command_line(words, names, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    value = str(LONG[kind])
    for name in [*names, "--unknown", f"--{value}"]:
        # What is taken goes no further than its folder, which a file is in the way of.
        more = ["--out=file/out"] if "--out" in names and name not in ("--out", "--data") else []
        given = [f"{name}={value}"] if name.startswith("--") else [value]
        assert run([*words, *more, *given]) == 2
        error = capsys.readouterr().err
        assert error.startswith("vastmax: ")
        assert len(error.splitlines()) == 1
        check_short(error, kind)
    assert run([*words[:-1], value]) == 2
    check_short(capsys.readouterr().err, kind)
    assert not (tmp_path / "runs").exists()


def read_labels(path, **options):
    return read_labelled_text(path, ClassifyConfig(**options))


def labels_by(column):
    return partial(read_labels, text_column=column, label_column=LONG["text"])


def read_column(path):
    return data.read_corpus(path, text_column=LONG["text"])


def read_at_spaces(path):
    return read_streams(LMConfig(data=str(path), split="whitespace"))


def twins(path):
    """Read a folder in which a file is there twice."""
    path.with_suffix(".txt").write_text("a\tb\n")
    return read_labels(path.parent)


NAMES = [f"{letter}{LONG['text']}" for letter in "abc"]
"""Names of columns."""
ASCII = f"us{'-' * MANY}ascii"
"""What Python takes for a name of ASCII."""

FILES = {
    "one token": (data.read_corpus, LONG["text"], "a.txt"),
    "two tokens": (data.read_corpus, f"{LONG['text']} {LONG['text']}", "a.txt"),
    "one token again and again": (data.read_corpus, f"{LONG['text']} " * 3, "a.txt"),
    "nothing to train on": (read_at_spaces, "今日" * MANY, "a.txt"),
    "an encoding of a long name": (partial(data.read_corpus, encoding=ASCII), f"é{LONG['words']}", "a.txt"),
    "a column of no table": (read_column, LONG["words"], "a.md"),
    "a column that is not there": (read_column, f"{','.join(NAMES)}\n1,2,3\n", "a.csv"),
    "a column that JSON lacks": (read_column, json.dumps([dict.fromkeys(NAMES, "a b c")])),
    "a folder without text": (lambda path: data.read_corpus(path.parent), LONG["words"], f"a.{'z' * 200}"),
    "a line without a label": (read_labels, LONG["text"], "a.tsv"),
    "a cell without a label": (read_labels, f"{LONG['text']}\ta\n{LONG['text']}\n", "a.tsv"),
    "a cell too many": (read_labels, f"a,b\n{LONG['text']},{LONG['text']},{LONG['text']}\n", "a.csv"),
    "a quote that is not closed": (read_labels, f'a,b\n{LONG["text"]},"{LONG["text"]}\n', "a.csv"),
    "three columns": (read_labels, f"{','.join(NAMES)}\n1,2,3\n", "a.csv"),
    "columns of one name": (read_column, json.dumps([{LONG["text"]: "a", LONG["text"].upper(): "b"}])),
    "labels of a column that is not there": (labels_by("1"), f"a{LONG['text']}\tb\n", "a.tsv"),
    "texts of a column that is not there": (labels_by(LONG["words"]), "a\tb\nc\td\n", "a.tsv"),
    "swapped columns": (
        read_labels,
        json.dumps([{NAMES[0]: f"a {i}", NAMES[1]: f"{'a ' * 9}{i}"} for i in range(9)]),
    ),
    "a line of fastText without words": (read_labels, f"__label__{LONG['text']}", "a.txt"),
    "a line that is no JSON": (read_labels, f"{{}}\n{LONG['text']}", "a.jsonl"),
    "a line that is no object": (read_labels, json.dumps(LONG["text"]), "a.jsonl"),
    "JSON of something else": (read_labels, json.dumps(LONG["text"])),
    "an object without rows": (read_labels, json.dumps(LONG["a dict"])),
    "a name twice": (read_labels, f'{{"{LONG["text"]}": 1, "{LONG["text"]}": 2}}'),
    "half a character": (read_labels, json.dumps([{"text": f"\ud800{LONG['text']}", "label": "a"}])),
    "numbers of many digits": (read_labels, json.dumps([{"text": "a", "label": LONG["digits"]}])),
    "several kinds": (read_labels, json.dumps([["a", 1], [LONG["text"], LONG["names"]]])),
    "lists for labels": (read_labels, json.dumps([[LONG["text"], LONG["names"]]])),
    "numbers for texts": (read_labels, json.dumps([{"text": 1, LONG["text"]: 2}])),
    "no Parquet": (read_labels, LONG["text"], "a.parquet"),
    "two of one file": (twins, "a\tb\n", f"train-{'y' * 200}.tsv"),
    "rows that are none": (read_labels, json.dumps({"train": [["a text", "a label"], LONG["names"]]})),
    "a part that is none": (read_labels, json.dumps({"train": LONG["text"]})),
    "another vocabulary": (data.Vocabulary.load, json.dumps({"format": LONG["text"]})),
    "other options": (LMConfig.load, json.dumps({**asdict(LMConfig()), "tokens": LONG["text"]})),
    "options that are none": (LMConfig.load, LONG["text"]),
    "a checkpoint that is none": (read_checkpoint, LONG["text"]),
    "another setting": (lambda path: begin(path.parent, {"seed": 1}), json.dumps(LONG["a dict"])),
    "another result": (lambda path: read_kept(path, {}), json.dumps({"setting": LONG["a dict"]})),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case, tmp_path):
    read, content, *name = FILES[case]
    file = tmp_path / "a folder" / ("folder/" * 30) / (*name, "setting.json")[0]
    file.parent.mkdir(parents=True)
    file.write_text(content, encoding="utf-8")
    message = complaint(read, file)
    if "was begun with another seed" not in message:
        assert ": expected " in message
        assert file.name[-10:] in message or file.name[:10] in message
    for kind in LONG:
        check_short(message, kind)
    assert str(file)[-120:] not in message
    assert str(file.parent)[-120:] not in message


@pytest.mark.parametrize("flag", ["--encoding", "--text-column", "--label-column"])
@pytest.mark.parametrize("words", [["compare", "classify"], ["compare", "lm"], ["train", "lm"]], ids=" ".join)
def test_options_of_readers(words, flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("text,label,more\n" + "some words,a,b\n" * 20)
    assert run([*words, "--data=data.csv", f"{flag}={LONG['text']}"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert flag in error or f"{flag[2:].replace('-', '_')}: expected" in error
    check_short(error, "text")
    assert not (tmp_path / "runs").exists()


OPTIMIZER = optim.LazyAdamW([torch.ones(3, 2, requires_grad=True)])
NEVER = samplers.Mixture([samplers.Unigram([0] + [1] * (V - 1))] * 500, [1.0] * 500)


def mixture(**options):
    return samplers.Mixture([samplers.Uniform(V)] * 500, [1.0] * 500, **options)


DEEPER = {
    "weights of a mixture": lambda: samplers.Mixture([samplers.Uniform(V)] * MANY, [1.0] * (MANY - 1) + [0.0]),
    "sizes in a mixture": lambda: samplers.Mixture([samplers.Uniform(V)] * MANY + [samplers.Uniform(3)], [1.0]),
    "devices in a mixture": lambda: samplers.Mixture(
        [samplers.Uniform(V)] * MANY + [samplers.Uniform(V, device="meta")], [1.0]
    ),
    "a mixture in a mixture": lambda: samplers.Mixture([mixture(unique=True)], [1.0]),
    "hard negatives in a mixture": lambda: samplers.Mixture([samplers.HardNegatives(mixture(), pool=3)], [1.0]),
    "a target never drawn": lambda: heads.SampledSoftmax(D, V, sampler=NEVER, num_samples=2)(HIDDEN, TARGET),
    "classes never proposed": lambda: heads.NCE(D, V, sampler=samplers.Uniform(V), proposal=NEVER, num_samples=2),
    "larger sets": lambda: heads.SampledSoftmax(D, V, sampler=mixture(unique=True), num_samples=8),
    "a path": lambda: trees.from_paths(["0" * MANY, "1" * MANY]),
    "a path's turn": lambda: trees.from_paths([LONG["words"], "1"]),
    "a path with another's beginning": lambda: trees.from_paths(["01" * MANY, "01" * MANY]),
    "an option of an optimizer's state": lambda: OPTIMIZER.load_state_dict(
        {"state": {}, "param_groups": [{**OPTIMIZER.param_groups[0], "params": [0], "amsgrad": LONG["text"]}]}
    ),
    "an optimizer's state": lambda: OPTIMIZER.load_state_dict(
        {**OPTIMIZER.state_dict(), "state": {0: {"step": torch.tensor(1.0), LONG["text"]: torch.ones(7)}}}
    ),
    "an encoding": lambda: data.read_corpus(".", encoding=LONG["text"]),
    "a column without data": lambda: read_data(ClassifyConfig(label_column=LONG["text"])),
    "an encoding without data": lambda: read_streams(LMConfig(encoding=LONG["text"])),
    "a place in a stream": lambda: data.TokenBatches(torch.arange(20), 2, 3).load_state_dict(LONG["a dict"]),
    "other weights": lambda: load_weights(heads.Softmax(D, V), {"state_dict": LONG["a dict"]}, LONG["a path"]),
    "shapes of the rows of an encoder": lambda: contrastive.cached_backward(
        torch.add, [torch.nn.Identity()], [tuple(torch.ones(2 + (i == 9), 1) for i in range(MANY))], chunk_size=2
    ),
}


@pytest.mark.parametrize("case", DEEPER)
def test_arguments_within_others(case):
    message = complaint(DEEPER[case])
    assert ": expected " in message
    assert len(message) < 450, message[:1000]
