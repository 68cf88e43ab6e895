"""A step of the hierarchical softmax over Huffman's tree, optimizer included."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks import problems, steps
from benchmarks.contest import milliseconds, rows_of
from benchmarks.floors import row_floor, row_rates, row_reads
from benchmarks.rows import Row, Target
from benchmarks.settings import Settings
from benchmarks.timing import Timer, side_by_side
from vastmax import heads, optim, trees

ROWS, FEATURES, CLASSES = 1024, 256, 1_000_000


def ours(rows: int, tree: trees.Tree, *, in_backward: bool) -> Timer:
    """A step of our head."""
    head = heads.HierarchicalSoftmax(FEATURES, tree, sparse=True)
    adagrad = optim.RowwiseAdagrad(head.parameters(), lr=steps.LR)
    return steps.fused_head_step(head, adagrad, rows) if in_backward else steps.head_step(head, adagrad, rows)


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    rows, classes = settings.scaled(ROWS), settings.scaled(CLASSES)
    tree = trees.huffman(1e9 / torch.arange(1, classes + 1, dtype=torch.float64))
    found = side_by_side(
        {
            "vastmax HierarchicalSoftmax, RowwiseAdagrad": partial(ours, rows, tree, in_backward=False),
            "vastmax HierarchicalSoftmax, RowwiseAdagrad in backward": partial(ours, rows, tree, in_backward=True),
        },
        floors=row_reads(torch.randn(classes, FEATURES)),
        rounds=settings.rounds,
        seconds=2 * settings.seconds,
        memory=True,
    )
    paths = tree.paths(torch.from_numpy(problems.log_uniform(classes, (rows,), seed=0)))
    on_path = paths.nodes[~paths.padding]
    row_bytes = 4 * FEATURES
    moved = (len(on_path) + 2 * len(on_path.unique())) * row_bytes
    floor = row_floor(moved, "rows of the paths read, updated", row_rates(found, row_bytes))

    def targets(name: str) -> list[Target]:
        return [Target("step", milliseconds(found[name]), 20.0, unit="ms")]

    measure = f"Huffman's tree, step with optimizer, N={rows} d={FEATURES} V={classes:,}"
    return rows_of(measure, found, floor=floor, targets=targets)
