"""On a GPU: the exact loss beside torch's, cut-cross-entropy's and Liger's, and sampled steps at 10^7 classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import steps
from benchmarks.contest import rows_of
from benchmarks.floors import Products, best_products, row_floor, row_rates, row_reads, sum_of
from benchmarks.measures.exact_loss import Loss, Problem, torch_fused, torch_plain
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Timer, Wall, side_by_side
from vastmax import heads, optim, samplers
from vastmax.functional import linear_cross_entropy

SHAPES = ((8192, 2304, 256_000), (16_384, 2048, 131_072))
BLOCKS = (4096, 16_384)
REFERENCE_ROWS = 512
STEP_ROWS, STEP_SAMPLES, STEP_FEATURES, STEP_CLASSES = 1024, 1024, 256, 10_000_000
TORCH = "torch linear + cross_entropy"
DEVICE = "cuda"


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    if not torch.cuda.is_available():
        return [Row("GPU", "all", note="skipped: no CUDA device")]
    rows = []
    for num_rows, features, classes in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            rows += exact_loss(settings, settings.scaled(num_rows), features, settings.scaled(classes), dtype)
    return rows + sampled_steps(settings)


def problem(rows: int, features: int, classes: int, dtype: torch.dtype) -> Problem:
    """Hidden rows and class rows as large as those of a model, which ask for gradients, and targets."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(rows, features, generator=generator, device=DEVICE).to(dtype)
    weight = (torch.randn(classes, features, generator=generator, device=DEVICE) / features**0.5).to(dtype)
    target = torch.randint(classes, (rows,), generator=generator, device=DEVICE)
    return hidden.requires_grad_(), weight.requires_grad_(), target


def losses() -> dict[str, Callable[[], Loss]]:
    """What imports and returns the loss, by implementation."""
    return {
        "vastmax linear_cross_entropy": lambda: linear_cross_entropy,
        "vastmax linear_cross_entropy, filter_eps=1e-5": lambda: partial(linear_cross_entropy, **filtered()),
        TORCH: lambda: torch_plain,
        "torch linear_cross_entropy, automatic chunks": lambda: partial(
            torch_fused, options=nn.LinearCrossEntropyOptions()
        ),
        "cut-cross-entropy, exact": lambda: cut_cross_entropy(filter_eps=None),
        "cut-cross-entropy, as it comes": cut_cross_entropy,
        "Liger": liger,
    }


def filtered() -> dict[str, Any]:
    """The option that leaves small gradients out."""
    return {"filter_eps": 1e-5}


def cut_cross_entropy(**options: Any) -> Loss:
    """The kernels of cut-cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy as theirs

    return partial(theirs, **options)


def liger() -> Loss:
    """The kernel of Liger."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as theirs

    def loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        found: Tensor = theirs(hidden, weight, target)
        return found

    return loss


def forward_backward(loss: Callable[[], Loss], given: Problem) -> Timer:
    """Time one forward and backward pass."""
    made = loss()
    return Wall(lambda: torch.autograd.grad(made(*given), given[:2]), DEVICE)


def reference(given: Problem) -> tuple[Tensor, Tensor]:
    """The gradients in float64, some rows at a time."""
    hidden, weight, target = (part.detach() for part in given)
    weight = weight.double()
    weight_grad = torch.zeros_like(weight)
    hidden_grads = []
    for rows, label in zip(hidden.split(REFERENCE_ROWS), target.split(REFERENCE_ROWS), strict=True):
        logit_grad = functional.softmax(rows.double() @ weight.T, dim=1)
        logit_grad[torch.arange(len(label), device=DEVICE), label] -= 1
        logit_grad /= len(target)
        hidden_grads.append(logit_grad @ weight)
        weight_grad += logit_grad.T @ rows.double()
    return torch.cat(hidden_grads), weight_grad


def exact_loss(settings: Settings, rows: int, features: int, classes: int, dtype: torch.dtype) -> list[Row]:
    """Measure the exact loss at one shape: errors first, then times and memory."""
    given = problem(rows, features, classes, dtype)
    contenders: dict[str, Callable[[], Timer]] = {
        name: partial(forward_backward, loss, given) for name, loss in losses().items()
    }
    products = [Products(rows, classes, features, block, dtype, device=DEVICE) for block in BLOCKS]
    bare = {f"{product}": product.prepare for product in products}
    found = side_by_side(contenders, floors=bare, rounds=settings.rounds, seconds=settings.seconds, memory=True)
    floor = best_products(products, [found.pop(name) for name in bare])
    right = reference(given)
    errors = {}
    for name, loss in losses().items():
        if found[name].median is not None:
            gradients = torch.autograd.grad(loss()(*given), given[:2])
            errors[name] = max(
                float((a.double() - b).norm() / b.norm()) for a, b in zip(gradients, right, strict=True)
            )
    short = str(dtype).removeprefix("torch.")
    measure = f"GPU, exact loss, forward + backward, {short}, N={rows:,} d={features:,} V={classes:,}"
    measured_rows = rows_of(measure, found, floor=floor, peers={"over torch": TORCH})
    return [
        replace(row, ratios=row.ratios | {"gradient error": errors[row.implementation]})
        if row.implementation in errors
        else row
        for row in measured_rows
    ]


def sampled_steps(settings: Settings) -> list[Row]:
    """Measure steps of sampled heads, optimizer included."""
    rows, samples = settings.scaled(STEP_ROWS), settings.scaled(STEP_SAMPLES)
    classes = settings.scaled(STEP_CLASSES)
    by_hand = "torch by hand, sparse Adagrad"

    def ours(head: type[heads.SampledHead], *, in_backward: bool) -> Timer:
        noise = samplers.LogUniform(classes)
        made = head(STEP_FEATURES, classes, sampler=noise, num_samples=samples, sparse=True, device=DEVICE)
        adagrad = optim.RowwiseAdagrad(made.parameters(), lr=steps.LR)
        return (steps.fused_head_step if in_backward else steps.head_step)(made, adagrad, rows)

    def theirs() -> Timer:
        head = steps.HandWrittenSampledSoftmax(classes, STEP_FEATURES, samples, DEVICE)
        return steps.hand_written_step(head, "Adagrad", rows)

    products = Products(rows, samples, STEP_FEATURES, samples, device=DEVICE)
    contenders: dict[str, Callable[[], Timer]] = {
        "vastmax SampledSoftmax, RowwiseAdagrad": partial(ours, heads.SampledSoftmax, in_backward=False),
        "vastmax SampledSoftmax, in backward": partial(ours, heads.SampledSoftmax, in_backward=True),
        "vastmax NCE, RowwiseAdagrad": partial(ours, heads.NCE, in_backward=False),
        by_hand: theirs,
    }
    bare = {"floor": products.prepare} | row_reads(torch.randn(classes, STEP_FEATURES, device=DEVICE))
    found = side_by_side(contenders, floors=bare, rounds=settings.rounds, seconds=settings.seconds, memory=True)
    row_bytes = 4 * STEP_FEATURES
    read = row_floor(3 * (rows + samples) * row_bytes, "rows read, updated", row_rates(found, row_bytes))
    floor = sum_of(products.floor(found.pop("floor")), read)
    measure = f"GPU, sampled step with optimizer, N={rows} k={samples} d={STEP_FEATURES}"
    return rows_of(measure, found, floor=floor, peers={"over torch by hand": by_hand}, classes=classes)
