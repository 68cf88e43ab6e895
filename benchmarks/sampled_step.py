"""A training step of an output layer, optimizer included, as the number of classes grows."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Machine, in_turn, paired_ratio
from vastmax import heads, optim, samplers

ROWS, SAMPLES, FEATURES = 1024, 1024, 256
CLASSES = (10_000, 100_000, 1_000_000)


def step_of(head: heads.FlatHead, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return a call that takes one step on new rows: loss, gradient, optimizer."""
    counts = 1e9 / torch.arange(1, head.num_classes + 1, dtype=torch.float64)
    data = samplers.Unigram(counts, power=1.0)
    generator = torch.Generator().manual_seed(1)

    def step() -> None:
        hidden = torch.randn(ROWS, FEATURES, generator=generator).requires_grad_()
        target = data.sample(ROWS, generator=generator).ids
        optimizer.zero_grad()
        head(hidden, target).backward()
        optimizer.step()

    return step


def sampled_step(num_classes: int, optimizer: str) -> Callable[[], None]:
    """A step of SampledSoftmax: with the rows a step touched, or with a dense gradient and torch's Adagrad."""
    counts = 1e9 / torch.arange(1, num_classes + 1, dtype=torch.float64)
    noise = samplers.Unigram(counts)
    sparse = optimizer != "dense Adagrad"
    head = heads.SampledSoftmax(FEATURES, num_classes, sampler=noise, num_samples=SAMPLES, sparse=sparse)
    if optimizer == "LazyAdamW":
        return step_of(head, optim.LazyAdamW(head.parameters()))
    if optimizer == "RowwiseAdagrad":
        return step_of(head, optim.RowwiseAdagrad(head.parameters()))
    return step_of(head, torch.optim.Adagrad(head.parameters()))


def exact_step(num_classes: int) -> Callable[[], None]:
    """A step of the exact head with torch's Adagrad."""
    head = heads.Softmax(FEATURES, num_classes)
    return step_of(head, torch.optim.Adagrad(head.parameters()))


def run(machine: Machine, *, rounds: int) -> list[dict[str, Any]]:
    """Measure, and return a row per step and number of classes."""
    measure = f"step with optimizer, N={ROWS} k={SAMPLES} d={FEATURES}"
    product = machine.matrix_floor(3 * 2 * ROWS * SAMPLES * FEATURES)
    rows: list[dict[str, Any]] = []
    sampled: dict[int, float] = {}
    for optimizer in ("LazyAdamW", "RowwiseAdagrad"):
        steps = {str(v): sampled_step(v, optimizer) for v in CLASSES}
        seconds = in_turn(steps, 15 * rounds)
        for v in CLASSES:
            sampled[v] = statistics.median(seconds[str(v)])
            rows.append(
                {
                    "measure": measure,
                    "implementation": f"SampledSoftmax + {optimizer}",
                    "classes": v,
                    "seconds": sampled[v],
                    "rounds": 15 * rounds,
                    "floor_seconds": product,
                    "time_over_smallest": paired_ratio(seconds[str(v)], seconds[str(CLASSES[0])]),
                }
            )
    for v in CLASSES:
        dense = {
            "SampledSoftmax + dense Adagrad": sampled_step(v, "dense Adagrad"),
            "Softmax + dense Adagrad": exact_step(v),
        }
        for name, times in in_turn(dense, rounds).items():
            exact = name.startswith("Softmax")
            rows.append(
                {
                    "measure": measure,
                    "implementation": name,
                    "classes": v,
                    "seconds": statistics.median(times),
                    "rounds": rounds,
                    "floor_seconds": machine.matrix_floor(3 * 2 * ROWS * v * FEATURES) if exact else product,
                    "over_sampled": statistics.median(times) / sampled[v],
                }
            )
    return rows
