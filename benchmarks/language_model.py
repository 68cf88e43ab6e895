"""A batch and the class rows of a trained language model: what a filter of small gradients is for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.settings import Settings
from vastmax.data.batches import TokenBatches
from vastmax.tasks.files import whole
from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.corpus import read_streams
from vastmax.tasks.lm.train import load_run, train

CACHE = Path("runs/benchmarks")
ROWS, WIDTH = 4096, 256
TRAINING_SECONDS = 60.0


class Batch(NamedTuple):
    """Hidden (N, d) and class rows (V, d), which ask for gradients, the classes' biases (V,) and targets (N,)."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    target: Tensor


def trained_batch(settings: Settings) -> Batch:
    """Take the batch of the run that was asked for, or of one trained on Python's own source, and keep it."""
    if settings.language_model is not None:
        return batch_of(Path(settings.language_model), settings.scaled(ROWS))
    folder = CACHE / ("language-model" if settings.scale == 1 else f"language-model-{settings.scale:g}")
    kept = folder / "batch.pt"
    if not kept.exists():
        train_on_standard_library(folder, settings)
        batch = batch_of(folder, settings.scaled(ROWS))
        with whole(kept) as draft:
            torch.save(dict(batch._asdict()), draft)
    found = torch.load(kept, weights_only=True)
    return Batch(**{name: found[name].requires_grad_(name in ("hidden", "weight")) for name in Batch._fields})


def train_on_standard_library(folder: Path, settings: Settings) -> None:
    """Train a small model, or go on with its training."""
    config = LMConfig(
        width=WIDTH,
        budget=max(2.0, TRAINING_SECONDS * settings.scale),
        points=1,
        point_tokens=2000,
        eval_tokens=4000,
        device="cpu",
    )
    train(config, "sampled", folder, read_streams(config), resume=True)


@torch.no_grad()
def batch_of(run: Path, rows: int) -> Batch:
    """Return hidden rows and targets of a run's test text, and its head's parameters."""
    config, vocabulary, model = load_run(run)
    model.eval()
    streams = read_streams(config, vocabulary)
    strands = -(-rows // config.seq_len)
    tokens, target = next(iter(TokenBatches(streams.test, strands, config.seq_len)))
    hidden, _ = model.body(tokens, None)
    weight, bias = model.head.get_parameter("weight"), model.head.get_parameter("bias")
    return Batch(
        hidden.flatten(0, 1)[:rows].clone().requires_grad_(),
        weight.detach().clone().requires_grad_(),
        bias.detach().clone(),
        model.class_of_token[target.flatten()[:rows]],
    )
