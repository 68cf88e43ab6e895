"""What a study of estimators can measure, by name, and what it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vastmax import heads, samplers
from vastmax.heads import SampledHead
from vastmax.samplers import HardNegatives, RandomFeatures, Sampler, TopAndTail, TreeGuided
from vastmax.validation import check_finite_number, check_names, check_positive_int, make_plain, shown

if TYPE_CHECKING:
    from vastmax.study.problems import Problem


class Estimator(NamedTuple):
    """A sampled loss, and what its candidates may be."""

    head: type[SampledHead]
    draws: str
    """`"iid"`, `"distinct"`, or `"either"`: independent draws where the sampler makes such."""


ESTIMATORS = {
    "sampled": Estimator(heads.SampledSoftmax, "iid"),
    "sampled-distinct": Estimator(heads.SampledSoftmax, "distinct"),
    "importance": Estimator(heads.ImportanceSampledSoftmax, "either"),
    "nce": Estimator(heads.NCE, "either"),
    "one-vs-each": Estimator(heads.OneVsEach, "either"),
}


class Noise(NamedTuple):
    """A sampler by its name: how it is built for a problem, for sets of distinct classes or not, and for k."""

    build: Callable[[Problem, bool, int], Sampler]
    iid: bool = True
    distinct: bool = True


SAMPLERS = {
    "unigram": Noise(lambda p, unique, k: samplers.Unigram(p.counts, 1.0, unique=unique)),
    "unigram-0.75": Noise(lambda p, unique, k: samplers.Unigram(p.counts, 0.75, unique=unique)),
    "uniform": Noise(lambda p, unique, k: samplers.Uniform(p.num_classes, unique=unique)),
    "log-uniform": Noise(lambda p, unique, k: samplers.LogUniform(p.num_classes, unique=unique)),
    "tree-guided": Noise(lambda p, unique, k: TreeGuided(p.num_classes), distinct=False),
    "random-features": Noise(lambda p, unique, k: RandomFeatures(p.num_classes), distinct=False),
    "top-and-tail": Noise(lambda p, unique, k: top_and_tail(p), iid=False),
    "hard-negatives": Noise(lambda p, unique, k: HardNegatives(samplers.Unigram(p.counts), 4 * k), distinct=False),
}
FIXED = ("unigram", "unigram-0.75", "uniform", "log-uniform")
"""Those that do not follow the model, which a study takes unless it is told otherwise."""


def top_and_tail(problem: Problem) -> TopAndTail:
    """The 100 likeliest classes, beside k of the others."""
    return TopAndTail(samplers.Unigram(problem.counts, unique=True), min(100, problem.num_classes))


@dataclass(frozen=True)
class StudyOptions:
    """What is measured, and how often.

    Attributes:
        estimators: names out of `ESTIMATORS`.
        samplers: names out of `SAMPLERS`.
        num_samples: rising numbers of samples k.
        repeats: draws of each estimate; at least 2.
        accuracy: the root-mean-square error that is wanted, as a share of the gradient's norm.
        shared: one set of candidates for the mini-batch, or one per row.
        seed: of the draws.

    Raises:
        TypeError, ValueError: an option out of its bounds.
    """

    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    samplers: tuple[str, ...] = FIXED
    num_samples: tuple[int, ...] = (1, 10, 100, 1000, 10_000)
    repeats: int = 30
    accuracy: float = 0.1
    shared: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        check_names("estimators", self.estimators, ESTIMATORS)
        check_names("samplers", self.samplers, SAMPLERS)
        for k in self.num_samples:
            check_positive_int("k", k)
        if not self.num_samples or list(self.num_samples) != sorted(set(self.num_samples)):
            raise ValueError(f"k: expected rising numbers of samples, got {shown(self.num_samples)}")
        if check_positive_int("repeats", self.repeats) < 2:
            raise ValueError("repeats: expected at least 2, so that estimates have a spread, got 1")
        check_finite_number("accuracy", self.accuracy, above=0.0)


def parse_names(option: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
    """Read names with commas between, or `all`; raise ValueError unless they are known, each once."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if names == ("all",):
        return tuple(known)
    check_names(option, names, (*known, "all"))
    return names


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between; raise ValueError if they are none."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(f"{option}: expected whole numbers with commas between, got {shown(text)}") from error
