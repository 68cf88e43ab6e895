"""A sampled step, optimizer included, as the number of classes grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks import steps
from benchmarks.contest import rows_of
from benchmarks.floors import Products
from benchmarks.rows import Row, Target
from benchmarks.settings import Settings
from benchmarks.tensorflow_peer import Step, TensorFlowStep
from benchmarks.timing import Timer, side_by_side
from vastmax import heads, optim, samplers

ROWS, SAMPLES, FEATURES = 1024, 1024, 128
CLASSES = (10**4, 10**5, 10**6, 10**7)
BOUND = 1.25


def sampled_head(num_classes: int, features: int, samples: int, *, sparse: bool = True) -> heads.SampledSoftmax:
    """The head, with the noise that TensorFlow takes."""
    noise = samplers.LogUniform(num_classes)
    return heads.SampledSoftmax(features, num_classes, sampler=noise, num_samples=samples, sparse=sparse)


@dataclass(frozen=True)
class Steps:
    """The steps at any number of classes, by implementation."""

    rows: int
    samples: int
    threads: int

    def adagrad(self, num_classes: int) -> Timer:
        """A step with RowwiseAdagrad."""
        head = sampled_head(num_classes, FEATURES, self.samples)
        return steps.head_step(head, optim.RowwiseAdagrad(head.parameters(), lr=steps.LR), self.rows)

    def in_backward(self, num_classes: int) -> Timer:
        """A step with RowwiseAdagrad, made within the backward pass."""
        head = sampled_head(num_classes, FEATURES, self.samples)
        return steps.fused_head_step(head, optim.RowwiseAdagrad(head.parameters(), lr=steps.LR), self.rows)

    def adamw(self, num_classes: int) -> Timer:
        """A step with LazyAdamW."""
        head = sampled_head(num_classes, FEATURES, self.samples)
        return steps.head_step(head, optim.LazyAdamW(head.parameters(), lr=steps.LR), self.rows)

    def dense(self, num_classes: int) -> Timer:
        """A step with a dense gradient and torch's Adagrad: what makes a sampled step linear in V again."""
        head = sampled_head(num_classes, FEATURES, self.samples, sparse=False)
        return steps.head_step(head, torch.optim.Adagrad(head.parameters(), lr=steps.LR), self.rows)

    def by_hand(self, num_classes: int) -> Timer:
        """A step in plain torch with its sparse Adagrad."""
        head = steps.HandWrittenSampledSoftmax(num_classes, FEATURES, self.samples)
        return steps.hand_written_step(head, "Adagrad", self.rows)

    def tensorflow(self, optimizer: str, num_classes: int) -> Timer:
        """A step of TensorFlow."""
        made = Step("sampled_softmax_loss", optimizer, self.rows, num_classes, FEATURES, self.samples, self.threads)
        return TensorFlowStep(made)


def growth(settings: Settings, name: str, prepare: Callable[[int], Timer], sizes: list[int]) -> list[Row]:
    """Measure one implementation, its numbers of classes in turn."""
    rows, samples = settings.scaled(ROWS), settings.scaled(SAMPLES)
    products = Products(rows, samples, FEATURES, samples)
    contenders = {f"{size}": partial(prepare, size) for size in sizes} | {"floor": products.prepare}
    found = side_by_side(contenders, rounds=settings.rounds, seconds=settings.seconds)
    floor = products.floor(found.pop("floor"))
    measure = f"sampled step with optimizer, N={rows} k={samples} d={FEATURES}"
    against = f"over V = {sizes[0]:,}"
    grown = []
    for size in sizes:
        [row] = rows_of(measure, {name: found[f"{size}"]}, floor=floor, classes=size)
        ratio = found[f"{size}"].over(found[f"{sizes[0]}"])
        ratios = {} if ratio is None or size == sizes[0] else {against: ratio}
        judged = size == sizes[-1] and "RowwiseAdagrad" in name
        targets = (Target(against, ratio, BOUND),) if judged else ()
        grown.append(replace(row, ratios=ratios, targets=targets))
    return grown


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows: an implementation at a time, for two do not fit in memory together."""
    made = Steps(settings.scaled(ROWS), settings.scaled(SAMPLES), settings.threads)
    sizes = [settings.scaled(size) for size in CLASSES]
    peers = sizes[:-1]
    return [
        *growth(settings, "vastmax SampledSoftmax + RowwiseAdagrad", made.adagrad, sizes),
        *growth(settings, "vastmax SampledSoftmax + RowwiseAdagrad in backward", made.in_backward, sizes),
        *growth(settings, "vastmax SampledSoftmax + LazyAdamW", made.adamw, peers),
        *growth(settings, "vastmax SampledSoftmax, dense gradient, torch Adagrad", made.dense, peers),
        *growth(settings, "torch by hand, sparse Adagrad", made.by_hand, peers),
        *growth(settings, "TensorFlow, Keras Adagrad", partial(made.tensorflow, "keras"), peers),
        *growth(settings, "TensorFlow, sparse Adagrad", partial(made.tensorflow, "sparse"), peers),
    ]
