"""Train one encoder with several contrastive losses, over several seeds, and score each on the same views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

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
from vastmax.tasks.classify.data import Problem, digits, pose
from vastmax.tasks.contrast.config import ContrastConfig
from vastmax.tasks.contrast.losses import KINDS, build_loss
from vastmax.tasks.contrast.train import build_encoder, check_batch, score, train
from vastmax.tasks.files import RESULTS, whole, write_json
from vastmax.validation import check_names

EMBEDDINGS = "embeddings.npy"
PIXELS = "pixels"
"""Not a loss but the yardstick of all: the images as they are, taken for their own embeddings."""


def compare_contrastive(
    config: ContrastConfig,
    losses: Sequence[str],
    folder: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train an encoder of digits with each loss and seed; losses of one seed share data, initial encoder and views.

    The folder receives `setting.json`, `results.json` and a folder per loss, with its scores as soon as it is done
    and the embeddings of the first seed's test rows, (N, d). With `resume`, losses that are done are not trained
    again, and those that the folder has beside `losses` are in the results too.

    Returns:
        The content of `results.json`, losses in the order of `KINDS`.

    Raises:
        ValueError: an unknown or repeated loss, a folder with another comparison in it, a batch too large, a model
            too large for memory.
    """
    check_names("losses", losses, KINDS)
    check_begun(folder, resume=resume)
    data = digits()
    problems = [pose(data, ClassifyConfig(), config.seed + repeat) for repeat in range(config.seeds)]
    check_batch(config, problems[0].train)
    sizes = [len(part.label) for part in (problems[0].train, problems[0].test)]
    say(f"{data.source}: {sizes[0]:,} images to train on, {sizes[1]:,} to test, two random views of each")
    results = []
    with one_thread(), torch.random.fork_rng(devices=[]):
        # What cannot be built is said before the work.
        build_encoder(problems[0].train.features.shape[1], config, config.seed)
        for name in losses:
            build_loss(name, config)
        begin(folder, vars(config))
        names = with_done(folder, (PIXELS, *losses), (PIXELS, *KINDS), say)
        for name in names:
            result = kept(
                folder / name,
                vars(config),
                lambda place, name=name: train_seeds(name, config, problems, place),  # type: ignore[misc]
            )
            say(describe_result(result))
            results.append(result)
    content = {
        **surroundings_of(results),
        "data": data.summary(),
        "train_rows": sizes[0],
        "test_rows": sizes[1],
        "options": vars(config),
        "losses": results,
        "embeddings": [np.load(folder / name / EMBEDDINGS, allow_pickle=False).round(5).tolist() for name in names],
        "label": problems[0].test.label.tolist(),
    }
    write_json(folder / RESULTS, content)
    return content


def train_seeds(name: str, config: ContrastConfig, problems: Sequence[Problem], folder: Path) -> dict[str, Any]:
    """Train with a loss under every seed; keep the first one's embeddings."""
    seeds: list[dict[str, Any]] = []
    for problem in problems:
        if name == PIXELS:
            scores, embedded = score(nn.Identity(), config.temperature, config, problem)
            scores = {"seed": problem.seed, "seconds": 0.0, **scores}
        else:
            scores, embedded = train(name, config, problem)
        if not seeds:
            with whole(folder / EMBEDDINGS) as draft, draft.open("wb") as file:
                np.save(file, embedded.numpy(), allow_pickle=False)
        seeds.append(scores)
    return {"loss": name, "seeds": seeds}


def describe_result(result: dict[str, Any]) -> str:
    """Return one line about a loss that is done."""
    seeds = result["seeds"]
    recall, neighbours = (spread([seed[name] for seed in seeds], 100) for name in ("recall_at_1", "neighbours"))
    seconds = sum(seed["seconds"] for seed in seeds)
    return f"{result['loss']:>10}  recall@1 {recall:>9}%  kNN accuracy {neighbours:>9}%  {seconds:5.1f} s"
