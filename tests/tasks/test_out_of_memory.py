"""Out of memory: one line that says what was asked for, what there is and what to lower; checkpoints stay whole."""

import errno
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from lm_runs import SMALL, losses, small

from vastmax.commands import run
from vastmax.tasks.lm.corpus import read_streams
from vastmax.tasks.lm.model import LanguageModel
from vastmax.tasks.lm.train import load_run, train

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")

CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.25 GiB of which 5.12 GiB is "
    "free. Including non-PyTorch memory, this process has 74.12 GiB memory in use. Of the allocated memory 70.00 "
    "GiB is allocated by PyTorch, and 3.00 GiB is reserved by PyTorch but unallocated."
)


def on_a_gpu(*_, **__):
    raise torch.OutOfMemoryError(CUDA)


def of_the_system(*_, **__):
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


FREE = r"got [\d,]+\.\d\d GiB free"
SHORT = {
    "torch": (lambda *_, **__: torch.empty(2**56), f"268,435,456.00 GiB more, {FREE}"),
    "torch, past counting": (lambda *_, **__: torch.empty(2**40, 2**40), f"more bytes than can be counted, {FREE}"),
    "NumPy": (lambda *_, **__: np.empty(2**56), rf"\d+ PiB more, {FREE}"),
    "NumPy, past counting": (lambda *_, **__: np.empty((2**40, 2**40)), f"more bytes than can be counted, {FREE}"),
    "Python": (lambda *_, **__: [0] * 2**59, f"more memory, {FREE}"),
    "the system": (of_the_system, f"more memory, {FREE}"),
    "a GPU": (on_a_gpu, r"20.00 GiB more, got 5.12 GiB free on the device"),
}
TINY = ["--data={text}", *(f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items())]
COMMANDS = {
    "train lm": (
        "tasks.lm.train.LanguageModel",
        ["--data={text}", "--width=300"],
        "--width 300, --num-samples 1024",
    ),
    "compare lm": ("tasks.lm.train.score", [*TINY, "--budget=0.1s"], "--num-samples 20, --batch-size 4"),
    "evaluate": ("tasks.lm.train.load_run", ["run"], None),
    "compare classify": ("study.classify.train", ["--hidden=200"], "--hidden 200, --num-samples 16"),
    "compare contrast": ("study.contrast.build_encoder", ["--queue=600"], "--queue 600, --batch-size 128"),
    "study estimators": ("study.estimators.measure", ["--k=1,2,3"], "--k 1,2,3 or --rows 256"),
    "study density": ("study.density.fit", ["--features=6"], "--features 6, --k 1,10,100 or --sample-sizes 100,"),
    "study bottleneck": (
        "study.bottleneck.fit",
        ["--num-classes=100"],
        "--num-classes 100, --widths 2,4,8,16,32,64",
    ),
}
"""Where each allocates, what it is asked for, and what it says to lower: what was raised before what was not."""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", SHORT)
def test_every_command_says_it_in_one_line(command, kind, text, tmp_path, monkeypatch, capsys):
    where, options, lower = COMMANDS[command]
    allocate, said = SHORT[kind]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"vastmax.{where}", allocate)
    assert run([*command.split(), *(option.format(text=text) for option in options)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.match(f"vastmax: out of memory: expected to be given {said}", error), error
    assert error.partition("; lower ")[2].startswith(lower or ""), error
    assert len(error) < 300


def test_what_the_system_refuses_in_earnest(text, tmp_path, capsys):
    options = [f"--data={text}", "--heads=sampled", "--num-samples=1000000000000"]
    assert run(["compare", "lm", *options, f"--out={tmp_path / 'out'}"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "expected to be given 7,450.58 GiB more, got " in error
    assert "; lower --num-samples 1000000000000, --batch-size 32, " in error
    assert len(error) < 300


def test_other_errors_come_through(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("vastmax.study.classify.train", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run(["compare", "classify", f"--out={tmp_path / 'out'}"])


@pytest.mark.parametrize("at", ["a step", "a checkpoint"])
def test_the_last_checkpoint_is_whole(at, text, tmp_path, monkeypatch, capsys):
    config = small(text, epochs=0.5, save_every=0.001)
    streams = read_streams(config)
    whole = train(config, "sampled", tmp_path / "whole", streams)
    step, save, saved = LanguageModel.training_step, torch.save, []

    def training_step(self, batch, batch_idx=0):
        if at == "a step" and self.global_step == 40:
            torch.empty(2**56)
        return step(self, batch, batch_idx)

    def half_saved(content, file):
        saved.append(content["global_step"])
        if at == "a checkpoint" and len(saved) == 5:
            file.write(b"half of it")
            torch.empty(2**56)
        save(content, file)

    options = [*(option.format(text=text) for option in TINY), "--epochs=0.5", "--save-every=0.001"]
    command = ["train", "lm", *options, f"--out={tmp_path / 'stopped'}"]
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "training_step", training_step)
        patch.setattr(torch, "save", half_saved)
        assert run(command) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("vastmax: out of memory: expected to be given 268,435,456.00 GiB more")
    assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["global_step"] in saved
    load_run(tmp_path / "stopped")
    assert run([*command, "--resume"]) == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert json.loads((tmp_path / "stopped" / "result.json").read_text())["test"] == whole["test"]


def test_a_checkpoint_larger_than_memory_is_not_called_damaged(text, tmp_path, monkeypatch, capsys):
    config = small(text, epochs=0.05)
    train(config, "exact", tmp_path / "run", read_streams(config))
    monkeypatch.setattr(torch, "load", lambda *_, **__: torch.empty(2**56))
    assert run(["evaluate", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("vastmax: out of memory: ")


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_a_limit_of_the_process_is_what_there_is():
    code = (
        "import resource; from vastmax.commands.memory import free_memory; free = free_memory(); "
        "_, most = resource.getrlimit(resource.RLIMIT_AS); "
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, most)); print(free, free_memory())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    free, limited = map(int, output.split())
    assert limited <= 2**26 < free
