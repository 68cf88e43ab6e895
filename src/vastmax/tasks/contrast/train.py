"""Train one encoder with one contrastive loss and score its embeddings."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR

from vastmax.contrastive import momentum_encoder
from vastmax.tasks.classify.data import Part, Problem
from vastmax.tasks.classify.train import shown
from vastmax.tasks.contrast.config import ContrastConfig
from vastmax.tasks.contrast.losses import KINDS, Objective, build_loss
from vastmax.tasks.contrast.scores import neighbour_accuracy, score_pairs
from vastmax.tasks.contrast.views import view

TEST_VIEWS = 1_000_003
"""Added to the seed, it draws the views of the test rows: the same for every loss."""


def build_encoder(num_features: int, config: ContrastConfig, seed: int) -> nn.Sequential:
    """Build the encoder: three layers, pixels (N, F) to embeddings (N, d)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(num_features, config.hidden),
        nn.ReLU(),
        nn.Linear(config.hidden, config.hidden),
        nn.ReLU(),
        nn.Linear(config.hidden, config.width),
    )


def train(name: str, config: ContrastConfig, problem: Problem) -> tuple[dict[str, Any], Tensor]:
    """Train an encoder with the loss of that name, and score its embeddings of the test rows.

    Losses of one seed begin with the same encoder and see the same views in the same batches.

    Returns:
        The scores, with the seconds of training, and the embeddings (N, d) of the test rows, of length 1.

    Raises:
        ValueError: a batch larger than the training part, or training that diverged.
    """
    encoder = build_encoder(problem.train.features.shape[1], config, problem.seed)
    objective = build_loss(name, config)
    begun = time.perf_counter()
    fit(name, encoder, objective, config, problem)
    seconds = time.perf_counter() - begun
    temperature = float(torch.as_tensor(objective.temperature).detach())
    scores, embedded = score(encoder, temperature, config, problem)
    return {"seed": problem.seed, "seconds": seconds, **scores}, embedded


def fit(name: str, encoder: nn.Module, objective: Objective, config: ContrastConfig, problem: Problem) -> None:
    """Train an encoder for all its epochs; rows that fill no batch wait for the next epoch."""
    kind, part = KINDS[name], problem.train
    check_batch(config, part)
    draw = torch.Generator().manual_seed(problem.seed)
    batches_per_epoch = len(part.label) // config.batch_size
    groups: list[dict[str, Any]] = [{"params": list(encoder.parameters())}]
    if learned := list(objective.parameters()):
        groups.append({"params": learned, "weight_decay": 0.0})
    optimizer = AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    schedule = LinearLR(optimizer, 1.0, 0.0, total_iters=config.epochs * batches_per_epoch)
    follower = momentum_encoder(encoder, config.momentum) if kind.momentum else None
    for _ in shown(range(config.epochs), f"{name}, seed {problem.seed}"):
        order = torch.randperm(len(part.label), generator=draw)
        for rows in order[: batches_per_epoch * config.batch_size].split(config.batch_size):
            first, second = (view(part.features[rows], config, draw) for _ in range(2))
            key = (follower or encoder)(second)
            more = {"labels": part.label[rows]} if kind.labels else {}
            loss = objective(encoder(first), key, **more)
            if not loss.isfinite():
                raise ValueError(f"lr: {name}, seed {problem.seed}: expected a finite loss, got {loss.item()}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if follower is not None:
                follower.update_parameters(encoder)


def check_batch(config: ContrastConfig, part: Part) -> None:
    """Raise ValueError if the training part does not fill one batch."""
    if len(part.label) < config.batch_size:
        raise ValueError(
            f"batch_size: expected at most the {len(part.label):,} training rows, got {config.batch_size:,}"
        )


@torch.no_grad()
def score(
    encoder: nn.Module, temperature: float, config: ContrastConfig, problem: Problem
) -> tuple[dict[str, float], Tensor]:
    """Score an encoder: pairs of views of the test rows, and the labels of their neighbours in training."""
    draw = torch.Generator().manual_seed(problem.seed + TEST_VIEWS)

    def embed(images: Tensor) -> Tensor:
        return functional.normalize(encoder(images), dim=-1)

    test = problem.test
    query, key = (embed(view(test.features, config, draw)) for _ in range(2))
    embedded = embed(test.features)
    return {
        **score_pairs(query, key, temperature),
        "neighbours": neighbour_accuracy(embed(problem.train.features), problem.train.label, embedded, test.label),
        "temperature": temperature,
    }, embedded
