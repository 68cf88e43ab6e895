"""The exact loss of a trained language model with and without the filter of small gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.contest import inverse, rows_of
from benchmarks.floors import best_products, every_way
from benchmarks.language_model import Batch, trained_batch
from benchmarks.measures.exact_loss import BLOCKS, Loss, Problem, forward_backward, gradient_error
from benchmarks.rows import Floor, Row, Target
from benchmarks.settings import Settings
from benchmarks.timing import Timer, side_by_side
from vastmax.functional import linear_cross_entropy

OURS = "vastmax linear_cross_entropy"
FILTERS: dict[str, dict[str, Any]] = {
    f"{OURS}, filter_eps=1e-5": {"filter_eps": 1e-5},
    f"{OURS}, filter_eps=1e-3": {"filter_eps": 1e-3},
    f"{OURS}, filter_eps=1e-2, bf16 products of the rest": {"filter_eps": 1e-2, "product_dtype": torch.bfloat16},
}
TORCH = "torch linear + cross_entropy"


def loss_of(batch: Batch, **options: Any) -> Loss:
    """Ours with the model's biases."""
    return partial(linear_cross_entropy, linear_bias=batch.bias, **options)


def torch_plain(hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor) -> Tensor:
    """Form every logit."""
    return functional.cross_entropy(functional.linear(hidden, weight, bias), target)


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    batch = trained_batch(settings)
    given: Problem = (batch.hidden, batch.weight, batch.target)
    filtered = {name: loss_of(batch, **options) for name, options in FILTERS.items()}
    plain: Loss = partial(torch_plain, bias=batch.bias)
    losses = {OURS: loss_of(batch), **filtered, TORCH: plain}
    contenders: dict[str, Callable[[], Timer]] = {
        name: partial(forward_backward, loss, given) for name, loss in losses.items()
    }
    rows, classes, features = *batch.hidden.shape[:1], *batch.weight.shape
    products = every_way(rows, classes, features, BLOCKS)
    bare = {f"{product}": product.prepare for product in products}
    found = side_by_side(contenders, floors=bare, rounds=settings.rounds, memory=True)
    floor = best_products(products, [found.pop(name) for name in bare])
    forward = None if floor is None else Floor(floor.seconds / 3, "the forward product alone of " + floor.kind)
    errors = {
        name: gradient_error(loss, losses[OURS], given)
        for name, loss in filtered.items()
        if found[name].median is not None
    }

    def targets(name: str) -> list[Target]:
        if name not in FILTERS:
            return []
        faster = inverse(found[name].over(found[OURS]))
        return [
            Target("times faster than unfiltered", faster, 1.5, at_most=False),
            Target("gradient error", errors.get(name), 1e-3),
        ]

    measured_rows = rows_of(
        f"exact loss of a trained language model, forward + backward, N={rows} d={features} V={classes:,}",
        found,
        floor=floor,
        floors=dict.fromkeys(filtered, forward),
        peers={"over torch": TORCH, "over ours unfiltered": OURS},
        targets=targets,
    )
    return [
        replace(row, ratios=row.ratios | {"gradient error": errors[row.implementation]})
        if row.implementation in errors
        else row
        for row in measured_rows
    ]
