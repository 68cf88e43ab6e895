"""A sampled step at V = 100,000, optimizer included, beside the exact step and the sampled steps of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from benchmarks import steps
from benchmarks.contest import inverse, over_floor, rows_of
from benchmarks.floors import Products
from benchmarks.measures.classes import sampled_head
from benchmarks.rows import Row, Target
from benchmarks.settings import Settings
from benchmarks.tensorflow_peer import Step, TensorFlowStep
from benchmarks.timing import Measured, Repeated, Timer, side_by_side
from vastmax import heads, optim, samplers

ROWS, SAMPLES, FEATURES, CLASSES = 1024, 1024, 256, 100_000
LOSSES = ("sampled softmax", "NCE")
OURS = {"RowwiseAdagrad": "vastmax, RowwiseAdagrad", "in backward": "vastmax, RowwiseAdagrad in backward"}
EXACT, BY_HAND, TENSORFLOW = "torch linear + cross_entropy, Adagrad", "torch by hand, Adagrad", "TensorFlow, Keras"
REPEATS = 10


@dataclass(frozen=True)
class Steps:
    """The steps of a loss, by implementation and optimizer."""

    rows: int
    samples: int
    classes: int
    threads: int

    def head(self, loss: str) -> heads.SampledHead:
        """A head of ours."""
        if loss == "sampled softmax":
            return sampled_head(self.classes, FEATURES, self.samples)
        noise = samplers.LogUniform(self.classes)
        return heads.NCE(FEATURES, self.classes, sampler=noise, num_samples=self.samples, sparse=True)

    def ours(self, loss: str, optimizer: str) -> Timer:
        """A step of ours with an optimizer of ours."""
        head = self.head(loss)
        if optimizer == "LazyAdamW":
            return steps.head_step(head, optim.LazyAdamW(head.parameters(), lr=steps.LR), self.rows)
        adagrad = optim.RowwiseAdagrad(head.parameters(), lr=steps.LR)
        if optimizer == "in backward":
            return steps.fused_head_step(head, adagrad, self.rows)
        return steps.head_step(head, adagrad, self.rows)

    def by_hand(self, loss: str, optimizer: str) -> Timer:
        """A step in plain torch."""
        written = steps.HandWrittenSampledSoftmax if loss == "sampled softmax" else steps.HandWrittenNCE
        return steps.hand_written_step(written(self.classes, FEATURES, self.samples), optimizer, self.rows)

    def tensorflow(self, loss: str, optimizer: str) -> Timer:
        """A step of TensorFlow."""
        theirs = "sampled_softmax_loss" if loss == "sampled softmax" else "nce_loss"
        made = Step(theirs, optimizer, self.rows, self.classes, FEATURES, self.samples, self.threads)
        return TensorFlowStep(made)

    def exact(self, fused: bool | None) -> Timer:
        """The exact step of torch."""
        return steps.exact_torch_step(self.rows, self.classes, FEATURES, fused=fused)

    def beside_exact(self, optimizer: str) -> Timer:
        """Several steps of ours in a row."""
        return Repeated(self.ours("sampled softmax", optimizer), REPEATS)

    def __str__(self) -> str:
        """The shape."""
        return f"N={self.rows} k={self.samples} d={FEATURES} V={self.classes:,}"


def among_themselves(settings: Settings, made: Steps, loss: str, exact: Mapping[str, Measured]) -> list[Row]:
    """Measure the sampled steps of one loss."""
    products = Products(made.rows, made.samples, FEATURES, made.samples)
    contenders: dict[str, Callable[[], Timer]] = {
        OURS["RowwiseAdagrad"]: partial(made.ours, loss, "RowwiseAdagrad"),
        OURS["in backward"]: partial(made.ours, loss, "in backward"),
        "vastmax, LazyAdamW": partial(made.ours, loss, "LazyAdamW"),
        BY_HAND: partial(made.by_hand, loss, "Adagrad"),
        "torch by hand, SparseAdam": partial(made.by_hand, loss, "SparseAdam"),
        TENSORFLOW: partial(made.tensorflow, loss, "keras"),
        "TensorFlow, sparse Adagrad": partial(made.tensorflow, loss, "sparse"),
    }
    found = side_by_side(
        contenders,
        floors={"floor": products.prepare},
        rounds=settings.rounds,
        seconds=settings.seconds,
        memory=True,
    )
    floor = products.floor(found.pop("floor"))

    def targets(name: str) -> list[Target]:
        if name not in OURS.values() or loss != "sampled softmax":
            return []
        faster = inverse(exact[name].over(exact[EXACT]))
        return [
            Target("times faster than torch's exact step", faster, 150.0, at_most=False),
            Target("over the floor", over_floor(found[name], floor), 1.3),
            Target("over torch by hand", found[name].over(found[BY_HAND]), 1.0),
            Target("over TensorFlow with Keras", found[name].over(found[TENSORFLOW]), 0.3),
        ]

    peers = {"over torch by hand": BY_HAND, "over TensorFlow with Keras": TENSORFLOW}
    return rows_of(f"{loss} step with optimizer, {made}", found, floor=floor, peers=peers, targets=targets)


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    made = Steps(settings.scaled(ROWS), settings.scaled(SAMPLES), settings.scaled(CLASSES), settings.threads)
    products = Products(made.rows, made.classes, FEATURES, block=4096)
    contenders: dict[str, Callable[[], Timer]] = {
        name: partial(made.beside_exact, optimizer) for optimizer, name in OURS.items()
    }
    contenders[EXACT] = partial(made.exact, None)
    contenders["torch linear + cross_entropy, fused Adagrad"] = partial(made.exact, True)
    bare = {"floor": products.prepare}
    exact = side_by_side(contenders, floors=bare, rounds=settings.rounds, memory=True)
    floor = products.floor(exact["floor"])
    theirs = {name: measured for name, measured in exact.items() if name.startswith("torch")}
    rows = [row for loss in LOSSES for row in among_themselves(settings, made, loss, exact)]
    return rows + rows_of(f"exact step with optimizer, {made}", theirs, floor=floor)
