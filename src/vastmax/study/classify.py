"""Train one classifier under several heads, over several seeds, and score each on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vastmax.study.repeats import (
    begin,
    check_begun,
    kept,
    one_thread,
    spread,
    surroundings_of,
    with_done,
)
from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.tasks.classify.data import LabelledData, Problem, pose, read_data
from vastmax.tasks.classify.heads import KINDS
from vastmax.tasks.classify.model import Classifier
from vastmax.tasks.classify.train import train
from vastmax.tasks.files import RESULTS, whole, write_json
from vastmax.validation import check_names

PROBABILITIES = "probabilities.npy"
MAX_PROBABILITIES = 10_000_000
"""Probabilities of test rows that are kept of a head: 40 MB."""


def compare_classifiers(
    config: ClassifyConfig,
    heads: Sequence[str],
    folder: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a classifier under each head and seed; heads of one seed share data, initial body and batches.

    The folder receives `setting.json`, `results.json` and a folder per head, with its scores as soon as it is done
    and the probabilities of the first seed's test rows, (N, V). With `resume`, heads that are done are not trained
    again, and those that the folder has beside `heads` are in the results too.

    Returns:
        The content of `results.json`, heads in the order of `KINDS`.

    Raises:
        ValueError: an unknown or repeated head, a folder with another comparison in it, unusable data, a model
            too large for memory.
    """
    check_names("heads", heads, KINDS)
    check_begun(folder, resume=resume)
    data = read_data(config)
    problems = [pose(data, config, config.seed + repeat) for repeat in range(config.seeds)]
    say(describe(data, problems[0]))
    setting = {**vars(config), "data": data.fingerprint()}  # the rows, wherever they are
    results = []
    with one_thread(), torch.random.fork_rng(devices=[]):
        for name in heads:
            Classifier(name, config, problems[0])  # what cannot be built is said before the work
        begin(folder, setting)
        names = with_done(folder, heads, KINDS, say)
        for name in names:
            result = kept(
                folder / name,
                setting,
                lambda place, name=name: train_seeds(name, config, problems, place),  # type: ignore[misc]
            )
            say(describe_result(result))
            results.append(result)
    content = {
        **surroundings_of(results),
        "data": data.summary(),
        "train_rows": len(problems[0].train.label),
        "valid_rows": len(problems[0].valid.label),
        "test_rows": len(problems[0].test.label),
        "options": vars(config),
        "heads": results,
        "example": example(data, problems[0], folder, names),
    }
    write_json(folder / RESULTS, content)
    return content


def train_seeds(name: str, config: ClassifyConfig, problems: Sequence[Problem], folder: Path) -> dict[str, Any]:
    """Train a head under every seed; keep the first one's probabilities."""
    seeds: list[dict[str, Any]] = []
    for problem in problems:
        scores, log_prob = train(name, config, problem)
        if not seeds:
            rows = max(1, MAX_PROBABILITIES // log_prob.shape[1])
            with whole(folder / PROBABILITIES) as draft, draft.open("wb") as file:
                np.save(file, log_prob[:rows].exp().numpy(), allow_pickle=False)
        seeds.append(scores)
    return {"head": name, "family": KINDS[name].family, "seeds": seeds}


def example(data: LabelledData, problem: Problem, folder: Path, heads: Sequence[str]) -> dict[str, Any]:
    """Return the test row that is hardest to tell between two classes, and what every head makes of it.

    It is the row whose second most probable class is most probable, on average over the heads.
    """
    predicted = np.stack([np.load(folder / name / PROBABILITIES, allow_pickle=False) for name in heads])
    average = predicted.mean(0)
    place = int(np.sort(average, axis=-1)[:, -2].argmax())
    shown = np.argsort(-average[place], kind="stable")[:8]
    row = problem.test.rows[place]
    given = data.inputs[row]
    return {
        "input": given if isinstance(given, str) else given.tolist(),
        "label": data.classes[data.label[row]],
        "classes": [data.classes[index] for index in shown],
        "probabilities": predicted[:, place, shown].tolist(),
        "nonzero": (predicted[:, place] > 0).sum(-1).tolist(),
    }


def describe(data: LabelledData, problem: Problem) -> str:
    """Return one line about the data."""
    sizes = " / ".join(f"{len(part.label):,}" for part in (problem.train, problem.valid, problem.test))
    line = (
        f"{data.source}: {sizes} rows to train, validate and test, {len(data.classes):,} classes with "
        f"{int(problem.counts.min()):,} to {int(problem.counts.max()):,} rows to train on"
    )
    return "\n".join([line, *(f"  {note}" for note in data.notes)])


def describe_result(result: dict[str, Any]) -> str:
    """Return one line about a head that is done."""
    accuracy, f1 = (
        spread([seed["test"][name] for seed in result["seeds"]], 100) for name in ("accuracy", "macro_f1")
    )
    seconds = sum(seed["seconds"] for seed in result["seeds"])
    return f"{result['head']:>14}  accuracy {accuracy:>9}%  macro-F1 {f1:>9}%  {seconds:5.1f} s"
