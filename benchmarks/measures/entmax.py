"""The 1.5-entmax of a batch of logits, forward and backward, beside the package `entmax`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.contest import milliseconds, rows_of
from benchmarks.floors import copy_elements, copy_floor
from benchmarks.rows import Row, Target
from benchmarks.settings import Settings
from benchmarks.timing import Timer, Wall, side_by_side
from vastmax import functional

ROWS, CLASSES = 64, 131_072
FULL_SORT, PARTIAL_SORT = "package entmax, full sort", "package entmax, k=100, not always exact"
OURS = "vastmax entmax15"


def forward_backward(mapping: Callable[[Tensor], Tensor], rows: int, classes: int) -> Timer:
    """Time a mapping and its gradient under a random upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator).requires_grad_()
    upstream = torch.randn(rows, classes, generator=generator)

    def call() -> None:
        torch.autograd.grad(mapping(logits), logits, upstream)

    return Wall(call)


def package(rows: int, classes: int, k: int | None) -> Timer:
    """The package's mapping."""
    from entmax import entmax15

    return forward_backward(lambda logits: entmax15(logits, k=k), rows, classes)


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    rows, classes = settings.scaled(ROWS), settings.scaled(CLASSES, least=256)
    found = side_by_side(
        {
            OURS: partial(forward_backward, functional.entmax15, rows, classes),
            FULL_SORT: partial(package, rows, classes, None),
            PARTIAL_SORT: partial(package, rows, classes, 100),
        },
        floors={"copy": copy_elements(rows * classes)},
        rounds=settings.rounds,
        seconds=settings.seconds,
        memory=True,
    )
    copied = found.pop("copy")
    moved = 5 * 4 * rows * classes
    floor = copy_floor(
        moved, "logits read, p written; p and upstream gradient read, gradient written", copied, rows * classes
    )

    def targets(name: str) -> list[Target]:
        return [Target("forward and backward", milliseconds(found[name]), 100.0, unit="ms")] if name == OURS else []

    peers = {"over full sort": FULL_SORT, "over k=100": PARTIAL_SORT}
    measure = f"1.5-entmax, forward + backward, {rows} x {classes:,}"
    return rows_of(measure, found, floor=floor, peers=peers, targets=targets)
