"""Damaged files, options out of bounds and texts that do not fit: errors that say which."""

import json
import os
import shutil
from dataclasses import asdict

import pytest
import torch
from lm_runs import small

from vastmax.tasks.lm.config import LMConfig, duration
from vastmax.tasks.lm.corpus import read_streams
from vastmax.tasks.lm.train import load_run, train

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    config = small(text, epochs=0.1)
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(config, "exact", folder, read_streams(config))
    return folder


class Code:
    def __reduce__(self):
        return (os.system, ("echo run by a checkpoint",))


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "foreign", "code", "other weights", "no weights"])
def test_damaged_checkpoints(finished, damage, tmp_path, capfd):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "last.ckpt"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "foreign":
        torch.save({"model": torch.zeros(3)}, path)
    elif damage == "no weights":
        torch.save({**torch.load(path, weights_only=True), "state_dict": 3}, path)
    elif damage == "code":
        torch.save({"state_dict": Code()}, path)
    else:
        content = torch.load(path, weights_only=True)
        content["state_dict"]["head.weight"] = torch.zeros(3, 3)
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"last\.ckpt: expected"):
        load_run(folder)
    assert "run by a checkpoint" not in capfd.readouterr().out
    (folder / "result.json").unlink()
    with pytest.raises(ValueError, match=r"last\.ckpt: expected"):
        train(small_of(folder), "exact", folder, read_streams(small_of(folder)), resume=True)


def small_of(folder):
    return LMConfig.load(folder / "config.json")[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json: expected the options of a run"),
        ("config.json", '{"a": 1}', "config.json: expected the options of a run, got JSON of something else"),
        (
            "config.json",
            json.dumps({**asdict(LMConfig()), "width": "8"}),
            "config.json: width: expected an integer",
        ),
        ("vocabulary.json", "{}", "vocabulary.json: expected"),
    ],
)
def test_damaged_runs(finished, name, content, message, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_run(folder)


BAD_OPTIONS = [
    ({"lr": -1.0}, "lr: expected a finite number greater than 0 and less than 1e.08, got -1"),
    ({"lr": float("nan")}, "lr"),
    ({"width": 0}, "width: expected an integer of at least 1, got 0"),
    ({"num_samples": 0}, "num_samples"),
    ({"dropout": 1.0}, "dropout"),
    ({"power": 1e9}, r"power: expected a finite number greater than -1e\+08 and less than 1e\+08"),
    ({"body": "gru"}, "body: expected one of lstm, transformer, got 'gru'"),
    ({"tokens": "char"}, "tokens: expected one of word, bpe"),
    ({"epochs": 1.0, "budget": 5.0}, "either epochs or budget"),
    ({"budget": 0.0}, "budget"),
    ({"budget": 1e30}, "budget: expected a finite number greater than 0 and less than 1e.08"),
]


@pytest.mark.parametrize(("change", "message"), BAD_OPTIONS)
def test_bad_options(change, message):
    with pytest.raises(ValueError, match=message):
        LMConfig(**change)


def test_too_little_text_for_a_batch(text, tmp_path):
    config = small(text, batch_size=1000, seq_len=1000)
    with pytest.raises(ValueError, match="batch_size=1000"):
        train(config, "exact", tmp_path / "run", read_streams(config))
    assert not (tmp_path / "run").exists()


def test_vocabulary_larger_than_the_data(text):
    with pytest.raises(ValueError, match=r"vocab_size.*5000"):
        read_streams(small(text, vocab_size=5000))


def test_durations():
    assert [duration(t) for t in ("90", "90s", "1.5m", "1h")] == [90.0, 90.0, 90.0, 3600.0]
    for wrong in ("", "s", "5 minutes", "1d"):
        with pytest.raises(ValueError, match="expected a duration"):
            duration(wrong)


def test_options_survive_their_file(tmp_path):
    config = LMConfig(epochs=2.0, data="x", vocab_size=7)
    config.save(tmp_path / "config.json", head="nce")
    assert LMConfig.load(tmp_path / "config.json") == (config, {"head": "nce"})
    assert json.loads((tmp_path / "config.json").read_text())["budget"] is None
