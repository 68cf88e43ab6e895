"""A step of the adaptive softmax, optimizer included, beside torch's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import problems, steps
from benchmarks.contest import inverse, milliseconds, rows_of
from benchmarks.floors import Products, copy_elements, copy_floor, sum_of
from benchmarks.rows import Floor, Row, Target
from benchmarks.settings import Settings
from benchmarks.timing import Measured, Timer, side_by_side
from vastmax import heads, optim

ROWS, FEATURES, CLASSES = 1024, 256, 1_000_000
CUTOFFS = (20_000, 200_000)
DIV_VALUE = 4.0
COPIED = 1 << 25
TORCH = "torch AdaptiveLogSoftmaxWithLoss, Adagrad"
SAME, AUTO = "vastmax, same cutoffs", "vastmax, automatic cutoffs"


def ours(rows: int, classes: int, cutoffs: Sequence[int] | str, counts: Tensor) -> Timer:
    """A step of our head, exact, with torch's Adagrad in our optimizer."""
    head = heads.AdaptiveSoftmax(FEATURES, classes, cutoffs, DIV_VALUE, counts=counts)
    adagrad = optim.RowwiseAdagrad(head.parameters(), lr=steps.LR)
    return steps.head_step(head, adagrad, rows)


def theirs(rows: int, classes: int, cutoffs: Sequence[int], *, fused: bool | None = None) -> Timer:
    """A step of torch's."""
    head = nn.AdaptiveLogSoftmaxWithLoss(FEATURES, classes, list(cutoffs), DIV_VALUE)

    def loss(hidden: Tensor, target: Tensor) -> Tensor:
        found: Tensor = head(hidden, target).loss
        return found

    adagrad = torch.optim.Adagrad(head.parameters(), lr=steps.LR, fused=fused)
    return steps.step(loss, steps.updating(adagrad), rows, classes, FEATURES)


def step_floor(rows: int, classes: int, cutoffs: Sequence[int], rate: float, copied: Measured) -> Floor | None:
    """Products of the shortlist for all rows and of each tail for its own; every parameter and its state once."""
    target = problems.log_uniform(classes, (problems.BATCHES, rows), seed=0)
    edges = [*cutoffs, classes]
    operations = 3 * 2.0 * rows * FEATURES * (cutoffs[0] + len(cutoffs))
    parameters = FEATURES * (cutoffs[0] + len(cutoffs))
    for i, (start, stop) in enumerate(itertools.pairwise(edges)):
        width = int(FEATURES // DIV_VALUE ** (i + 1))
        in_tail = float(((target >= start) & (target < stop)).sum(1).mean())
        operations += 3 * 2 * in_tail * width * (FEATURES + stop - start)
        parameters += width * (FEATURES + stop - start)
    products = Floor(operations / rate, f"3 matrix products, {rate / 1e9:,.0f} GFLOP/s measured")
    # The gradient is written and read, weight and accumulator are read and written.
    update = copy_floor(6 * 4 * parameters, "gradient, weight and accumulator", copied, COPIED)
    return sum_of(products, update)


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    rows, classes = settings.scaled(ROWS), settings.scaled(CLASSES)
    cutoffs = [settings.scaled(cutoff) for cutoff in CUTOFFS]
    counts = 1e9 / torch.arange(1, classes + 1, dtype=torch.float64)
    automatic = heads.adaptive_cutoffs(counts, FEATURES, div_value=DIV_VALUE)
    products = Products(rows, cutoffs[0], FEATURES, block=4096)
    found = side_by_side(
        {
            SAME: partial(ours, rows, classes, cutoffs, counts),
            AUTO: partial(ours, rows, classes, "auto", counts),
            TORCH: partial(theirs, rows, classes, cutoffs),
            "torch AdaptiveLogSoftmaxWithLoss, fused Adagrad": partial(theirs, rows, classes, cutoffs, fused=True),
        },
        floors={"products": products.prepare, "copy": copy_elements(COPIED)},
        rounds=settings.rounds,
        seconds=settings.seconds,
        memory=True,
    )
    copied, multiplied = found.pop("copy"), products.floor(found.pop("products"))
    floor = automatic_floor = None
    if multiplied is not None:
        rate = 3 * 2 * rows * cutoffs[0] * FEATURES / multiplied.seconds
        floor = step_floor(rows, classes, cutoffs, rate, copied)
        automatic_floor = step_floor(rows, classes, automatic, rate, copied)

    def targets(name: str) -> list[Target]:
        if name == SAME:
            faster = inverse(found[name].over(found[TORCH]))
            return [Target("times faster than torch", faster, 2.0, at_most=False)]
        if name == AUTO:
            return [Target("step", milliseconds(found[name]), 120.0, unit="ms")]
        return []

    measure = f"adaptive softmax, step with optimizer, N={rows} d={FEATURES} V={classes:,}"
    floors = {AUTO: automatic_floor}
    return rows_of(measure, found, floor=floor, floors=floors, peers={"over torch": TORCH}, targets=targets)
