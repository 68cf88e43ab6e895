"""Negative sampling with candidates of its own for every row: forward, backward and the update of the rows."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import steps
from benchmarks.contest import inverse, over_floor, rows_of
from benchmarks.floors import row_floor, row_rates, row_reads
from benchmarks.rows import Row, Target
from benchmarks.settings import Settings
from benchmarks.timing import Timer, side_by_side
from vastmax import heads, optim, samplers

ROWS, SAMPLES, FEATURES, CLASSES = 1024, 100, 256, 1_000_000
EAGER = "torch by hand, sparse Adagrad"
IN_BACKWARD = "vastmax, RowwiseAdagrad in backward"


def ours(rows: int, classes: int, *, in_backward: bool) -> Timer:
    """A step of our head."""
    head = heads.NegativeSampling(
        FEATURES, classes, sampler=samplers.Uniform(classes), num_samples=SAMPLES, shared=False, sparse=True
    )
    adagrad = optim.RowwiseAdagrad(head.parameters(), lr=steps.LR)
    return steps.fused_head_step(head, adagrad, rows) if in_backward else steps.head_step(head, adagrad, rows)


class HandWritten(nn.Module):
    """The same in plain torch: class rows in a sparse embedding, scored by a batched product.

    Args:
        num_classes: V.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.weight = nn.Embedding(num_classes, FEATURES, sparse=True)
        self.bias = nn.Embedding(num_classes, 1, sparse=True)
        bound = 1 / math.sqrt(FEATURES)
        nn.init.uniform_(self.weight.weight, -bound, bound)
        nn.init.zeros_(self.bias.weight)

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of hidden (N, d) and target (N,)."""
        ids = torch.cat([target[:, None], torch.randint(self.num_classes, (len(target), SAMPLES))], 1)
        logits = torch.bmm(self.weight(ids), hidden.unsqueeze(2)).squeeze(2) + self.bias(ids).squeeze(2)
        return functional.softplus(-logits[:, 0]).mean() + functional.softplus(logits[:, 1:]).sum(1).mean()


def by_hand(rows: int, classes: int) -> Timer:
    """A step in plain torch."""
    head = HandWritten(classes)
    update = steps.updating(torch.optim.Adagrad(head.parameters(), lr=steps.LR))
    return steps.step(head, update, rows, classes, FEATURES)


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    rows, classes = settings.scaled(ROWS), settings.scaled(CLASSES)
    found = side_by_side(
        {
            "vastmax, RowwiseAdagrad": partial(ours, rows, classes, in_backward=False),
            IN_BACKWARD: partial(ours, rows, classes, in_backward=True),
            EAGER: partial(by_hand, rows, classes),
        },
        floors=row_reads(torch.randn(classes, FEATURES)),
        rounds=settings.rounds,
        seconds=2 * settings.seconds,
        memory=True,
    )
    row_bytes = 4 * FEATURES
    rates = row_rates(found, row_bytes)
    drawn = rows * (1 + SAMPLES)
    touched = len(torch.randint(classes, (drawn,)).unique())
    # Read once, each row serves logit and gradient; an update reads and writes each class's row once. A gradient
    # that waits for the optimizer's step is written and read besides.
    least = row_floor((drawn + 2 * touched) * row_bytes, "rows read, updated", rates)
    deferred = row_floor(
        (drawn + 4 * touched) * row_bytes, "rows read, gradients written and read, rows updated", rates
    )

    floors = {IN_BACKWARD: least}

    def targets(name: str) -> list[Target]:
        if name == EAGER:
            return []
        faster = inverse(found[name].over(found[EAGER]))
        return [
            Target("times faster than torch by hand", faster, 6.0, at_most=False),
            Target("over the floor", over_floor(found[name], floors.get(name, deferred)), 1.6),
        ]

    measure = f"negatives per row, step with optimizer, N={rows} k={SAMPLES} d={FEATURES} V={classes:,}"
    peers = {"over torch by hand": EAGER}
    return rows_of(measure, found, floor=deferred, floors=floors, peers=peers, targets=targets)
