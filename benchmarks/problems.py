"""The batches that contenders train on, the same in every process: numpy alone, for TensorFlow's process too."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BATCHES = 64
"""Batches of targets before they repeat, so that a step does not find its rows in the caches."""

HIDDEN = 4
"""Batches of hidden rows."""


def log_uniform(num_classes: int, shape: tuple[int, ...], seed: int) -> NDArray[np.int64]:
    """Class ids by Zipf's law, as log-uniform noise draws them: P(c) = log((c + 2) / (c + 1)) / log(V + 1)."""
    uniform = np.random.default_rng(seed).random(shape)
    drawn: NDArray[np.int64] = np.exp(uniform * np.log(num_classes + 1.0)).astype(np.int64) - 1
    return drawn.clip(max=num_classes - 1)


def batches(
    rows: int, num_classes: int, features: int, seed: int = 0
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield hidden (N, d) and target (N,) without end."""
    target = log_uniform(num_classes, (BATCHES, rows), seed)
    hidden = np.random.default_rng(seed + 1).standard_normal((HIDDEN, rows, features), dtype=np.float32) * 0.3
    for number in itertools.count():
        yield hidden[number % HIDDEN], target[number % BATCHES]
