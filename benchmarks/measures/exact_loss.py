"""The exact loss from hidden rows and class rows: time and memory of forward and backward, beside torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.contest import inverse, memory_over, rows_of
from benchmarks.floors import Products, best_products, every_way
from benchmarks.rows import Floor, Row, Target
from benchmarks.settings import Settings
from benchmarks.timing import Measured, Timer, Wall, side_by_side
from vastmax.functional import linear_cross_entropy

ROWS, FEATURES, CLASSES = 4096, 256, 131_072
BLOCKS = (1024, 4096)
WARM_UP = 0.05
OURS, BFLOAT16 = "vastmax linear_cross_entropy", "vastmax linear_cross_entropy, bf16 products"
TORCH = "torch linear + cross_entropy"

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Problem = tuple[Tensor, Tensor, Tensor]


def problem(rows: int, classes: int, features: int) -> Problem:
    """Hidden rows and class rows, which ask for gradients, and targets."""
    generator = torch.Generator().manual_seed(0)
    hidden = (0.3 * torch.randn(rows, features, generator=generator)).requires_grad_()
    weight = (0.3 * torch.randn(classes, features, generator=generator)).requires_grad_()
    return hidden, weight, torch.randint(classes, (rows,), generator=generator)


def forward_backward(loss: Loss, given: Problem) -> Timer:
    """Time one forward and backward pass, its gradients included and then dropped."""

    def call() -> None:
        torch.autograd.grad(loss(*given), given[:2])

    return Wall(call)


def torch_plain(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Form every logit."""
    return functional.cross_entropy(functional.linear(hidden, weight), target)


def torch_fused(hidden: Tensor, weight: Tensor, target: Tensor, options: Any = None) -> Tensor:
    """Take torch's own function: its reference without options, in chunks of rows with them."""
    loss: Tensor = functional.linear_cross_entropy(hidden, weight, target, options=options)
    return loss


def cut_cross_entropy(given: Problem) -> Timer:
    """The path that the package has for CPUs: compiled torch."""
    from cut_cross_entropy import linear_cross_entropy as theirs

    return forward_backward(partial(theirs, impl="torch_compile"), given)


def contenders(given: Problem, *, full: bool) -> dict[str, Callable[[], Timer]]:
    """Every implementation on the same problem."""
    chunks = nn.LinearCrossEntropyOptions(batch_chunk_size=512, chunking_method=None)
    made: dict[str, Callable[[], Timer]] = {
        OURS: partial(forward_backward, linear_cross_entropy, given),
        BFLOAT16: partial(forward_backward, partial(linear_cross_entropy, **bfloat16()), given),
        TORCH: partial(forward_backward, torch_plain, given),
        "torch linear_cross_entropy, 512 rows a chunk": partial(
            forward_backward, partial(torch_fused, options=chunks), given
        ),
    }
    if full:
        made["cut-cross-entropy, its CPU path"] = partial(cut_cross_entropy, given)
        automatic = partial(torch_fused, options=nn.LinearCrossEntropyOptions())
        made["torch linear_cross_entropy"] = partial(forward_backward, torch_fused, given)
        made["torch linear_cross_entropy, automatic chunks"] = partial(forward_backward, automatic, given)
    return made


def bfloat16() -> dict[str, Any]:
    """The options of products in bf16."""
    return {"product_dtype": torch.bfloat16}


def gradient_error(loss: Loss, exact: Loss, given: Problem) -> float:
    """The largest relative error, by norm, of the gradients of hidden and weight."""
    found = torch.autograd.grad(loss(*given), given[:2])
    right = torch.autograd.grad(exact(*given), given[:2])
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, right, strict=True))


def error_of(measured: Measured, loss: Loss, given: Problem) -> dict[str, float]:
    """The gradient's error beside float32, where the implementation runs at all."""
    if measured.median is None:
        return {}
    return {"gradient error": gradient_error(loss, linear_cross_entropy, given)}


def targets_of(found: Mapping[str, Measured], floor: Floor | None, error: float | None) -> dict[str, list[Target]]:
    """The targets of each implementation of ours."""
    ours, theirs = found[OURS], found[TORCH]
    reached = None if ours.median is None or floor is None else floor.seconds / ours.median
    return {
        OURS: [
            Target("time over torch", ours.over(theirs), 0.7),
            Target("memory over torch", memory_over(ours, theirs), 0.03),
            Target("of the matrix rate", reached, 0.85, at_most=False),
        ],
        BFLOAT16: [
            Target("times faster than float32", inverse(found[BFLOAT16].over(ours)), 1.7, at_most=False),
            Target("gradient error", error, 1e-2),
        ],
    }


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    rows, classes = settings.scaled(ROWS), settings.scaled(CLASSES, least=256)
    small = problem(max(16, round(rows * WARM_UP)), max(256, round(classes * WARM_UP)), FEATURES)
    side_by_side(contenders(small, full=settings.full), rounds=1)

    given = problem(rows, classes, FEATURES)
    single = every_way(rows, classes, FEATURES, BLOCKS, most_blocks=2)
    half = [Products(rows, classes, FEATURES, block, torch.bfloat16, most_blocks=2) for block in BLOCKS]
    bare = {f"{product}": product.prepare for product in single + half}
    found = side_by_side(
        contenders(given, full=settings.full),
        floors=bare,
        rounds=settings.rounds,
        memory=True,
        warm=settings.scale == 1,
    )
    floor = best_products(single, [found[f"{product}"] for product in single])
    half_floor = best_products(half, [found[f"{product}"] for product in half])
    found = {name: measured for name, measured in found.items() if name not in bare}
    errors = error_of(found[BFLOAT16], partial(linear_cross_entropy, **bfloat16()), given)
    targets = targets_of(found, floor, errors.get("gradient error"))
    measured_rows = rows_of(
        f"exact loss, forward + backward, N={rows} d={FEATURES} V={classes:,}",
        found,
        floor=floor,
        floors={BFLOAT16: half_floor},
        peers={"over torch": TORCH, "over ours in float32": OURS},
        targets=lambda name: targets.get(name, []),
    )
    return [
        replace(row, ratios=row.ratios | errors) if row.implementation == BFLOAT16 else row for row in measured_rows
    ]
