"""Train one classifier under one head and score it."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR

from vastmax.optim import LazyAdamW
from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.tasks.classify.data import Part, Problem
from vastmax.tasks.classify.heads import predict
from vastmax.tasks.classify.model import Classifier
from vastmax.tasks.classify.scores import score

EVAL_ROWS = 1024


def train(name: str, config: ClassifyConfig, problem: Problem) -> tuple[dict[str, Any], Tensor]:
    """Train a classifier under the head of that name, and score it on validation and test rows.

    Heads of one seed begin with the same body, see the same batches and drop the same hidden units.

    Returns:
        The scores, with the seconds of training, and the log-probabilities (N, V) of the test rows.

    Raises:
        ValueError: training that diverged.
    """
    model = Classifier(name, config, problem)
    begun = time.perf_counter()
    fit(model, config, problem, f"{name}, seed {problem.seed}")
    seconds = time.perf_counter() - begun
    valid = log_probabilities(name, model, config, problem, problem.valid)
    test = log_probabilities(name, model, config, problem, problem.test)
    return {
        "seed": problem.seed,
        "seconds": seconds,
        "train_rows": len(problem.train.label),
        "largest_class": int(problem.counts.max()),
        "smallest_class": int(problem.counts.min()),
        "valid": score(valid, problem.valid.label, problem.counts),
        "test": score(test, problem.test.label, problem.counts),
    }, test


def fit(model: Classifier, config: ClassifyConfig, problem: Problem, title: str) -> None:
    """Train a classifier for all its epochs."""
    part = problem.train
    draw = torch.Generator().manual_seed(problem.seed)
    batches_per_epoch = -(-len(part.label) // config.batch_size)
    steps = config.epochs * batches_per_epoch
    optimizer = LazyAdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    model.train()
    step = 0
    for _ in shown(range(config.epochs), title):
        for rows in torch.randperm(len(part.label), generator=draw).split(config.batch_size):
            if step > 0:
                schedule.step()
            step += 1
            torch.manual_seed(problem.seed + step * 1_000_003)  # dropout is the same whatever a head draws after it
            optimizer.zero_grad()
            loss = model.head(model.body(part.features[rows.numpy()]), part.label[rows])
            if not loss.isfinite():
                raise ValueError(
                    f"lr: {title}: expected a finite loss, got {loss.item()} at step {step} of {steps}"
                )
            loss.backward()
            optimizer.step()
        optimizer.catch_up()  # before the rate falls further, and at last to 0, by which no row would move


@torch.no_grad()
def log_probabilities(name: str, model: Classifier, config: ClassifyConfig, problem: Problem, part: Part) -> Tensor:
    """Return the log-probabilities (N, V) that a trained classifier predicts with."""
    model.eval()
    found = []
    for rows in torch.arange(len(part.label)).split(EVAL_ROWS):
        hidden = model.body(part.features[rows.numpy()])
        found.append(predict(name, model.head, hidden, config, problem.counts))
    return torch.cat(found)


def shown(epochs: range, title: str) -> Any:
    """Show progress on a terminal."""
    return track(epochs, title, transient=True, console=Console(stderr=True), disable=not sys.stderr.isatty())
