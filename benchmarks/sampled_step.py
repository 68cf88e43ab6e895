"""A training step of an output layer, optimizer included, as the number of classes grows."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Machine, in_turn, paired_ratio
from vastmax import heads, optim, samplers

ROWS, SAMPLES, FEATURES = 1024, 1024, 256
CLASSES = (10_000, 100_000, 1_000_000)
EXACT_AT_MOST = 100_000
"""Beyond it an exact step takes tens of seconds, and its cost is known to be linear."""


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
    rows = []
    flat: dict[tuple[int, str], list[float]] = {}
    sampled = ("RowwiseAdagrad", "LazyAdamW")
    calls = {(v, name): sampled_step(v, name) for v in CLASSES for name in sampled}
    for (v, name), call in calls.items():
        for _ in range(5):
            call()
    for key, seconds in in_turn({f"{v} {name}": call for (v, name), call in calls.items()}, 10 * rounds).items():
        v, name = key.split(" ")
        flat[int(v), name] = seconds
    del calls
    product = machine.matrix_floor(3 * 2 * ROWS * SAMPLES * FEATURES)
    for (v, name), seconds in flat.items():
        rows.append(
            {
                "measure": f"step with optimizer, N={ROWS} k={SAMPLES} d={FEATURES}",
                "implementation": f"SampledSoftmax + {name}",
                "classes": v,
                "seconds": statistics.median(seconds),
                "rounds": len(seconds),
                "floor_seconds": product,
                "time_over_smallest": paired_ratio(seconds, flat[CLASSES[0], name]),
            }
        )
    for v in CLASSES:
        calls_here = {"SampledSoftmax + dense Adagrad": sampled_step(v, "dense Adagrad")}
        if v <= EXACT_AT_MOST:
            calls_here["Softmax + dense Adagrad"] = exact_step(v)
        for name, seconds in in_turn(calls_here, rounds).items():
            exact = name.startswith("Softmax")
            rows.append(
                {
                    "measure": f"step with optimizer, N={ROWS} k={SAMPLES} d={FEATURES}",
                    "implementation": name,
                    "classes": v,
                    "seconds": statistics.median(seconds),
                    "rounds": rounds,
                    "floor_seconds": machine.matrix_floor(3 * 2 * ROWS * v * FEATURES) if exact else product,
                    "over_sampled": statistics.median(seconds) / statistics.median(flat[v, "RowwiseAdagrad"]),
                }
            )
    return rows
