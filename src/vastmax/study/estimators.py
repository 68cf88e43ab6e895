"""How far the gradient of each sampled loss is from the exact one, by sampler and number of samples.

NCE's gradient tends to that of maximum likelihood, as k grows, where the model normalises itself. It is therefore
given the exact log Z of each row, as a constant. It also takes independent draws: among distinct classes none is
expected more than once, and NCE's bias stays. Negative sampling is no estimate of this gradient, for it learns
log(p / q), and is left out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor, nn

from vastmax import heads
from vastmax.functional import effective_sample_size
from vastmax.heads import SampledHead
from vastmax.samplers import Batch, Sampler
from vastmax.scoring import chosen_logits, linear_log_partition
from vastmax.study.estimator_options import ESTIMATORS, SAMPLERS, StudyOptions
from vastmax.study.gradients import (
    PARTS,
    GradientErrors,
    by_part,
    exact_gradients,
    gradients,
    load,
    mini_batch_noise,
    norm,
)
from vastmax.study.implied import implied_samples, unit_gain
from vastmax.study.problems import Problem
from vastmax.study.surroundings import surroundings

ESS_DRAWS = 4
"""Candidate sets over which the effective sample size is averaged, beside the rows."""


class GivenLogPartition(nn.Module):
    """The exact log-partition of the rows of one mini-batch, (N,), made once."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.log_z = linear_log_partition(problem.hidden, problem.weight, linear_bias=problem.bias).log_partition

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the log-partition of each row, (N, 1)."""
        return self.log_z.unsqueeze(1)


def build_head(name: str, problem: Problem, sampler: Sampler, k: int, *, shared: bool = True) -> SampledHead:
    """Build the head whose training gradient is the estimate: the problem's class rows, candidates of `sampler`."""
    head = ESTIMATORS[name].head(
        *problem.weight.shape[::-1],
        sampler=sampler,
        num_samples=k,
        shared=shared,
        sparse=True,
        dtype=problem.weight.dtype,
    )
    load(head, problem)
    if isinstance(head, heads.NCE):
        head.normaliser = GivenLogPartition(problem)  # knows the rows of the mini-batch, and no others
    return head


def measure(
    head: SampledHead, problem: Problem, exact: dict[str, Tensor], *, repeats: int, seed: int
) -> dict[str, Any]:
    """Draw a head's gradient `repeats` times; return the median ms of a draw and `GradientErrors` by part."""
    generator = torch.Generator().manual_seed(seed)
    errors = {part: GradientErrors(exact[part]) for part in PARTS}
    seconds = []
    for _ in range(repeats):
        hidden = problem.hidden.clone().requires_grad_()
        begun = time.perf_counter()
        drawn = gradients(head(hidden, problem.target, generator=generator), head, hidden)
        seconds.append(time.perf_counter() - begun)
        for part, estimate in by_part(*drawn).items():
            errors[part].update(estimate)
    return {"ms": 1000 * median(seconds), **{part: errors[part].compute() for part in PARTS}}


@torch.no_grad()
def sample_sizes(problem: Problem, sampler: Sampler, k: int, *, shared: bool, seed: int) -> dict[str, float]:
    """Return the mean number of candidates of a row, and the mean effective sample size."""
    generator = torch.Generator().manual_seed(seed)
    size = [k] if shared else [problem.num_rows, k]
    candidates = effective = 0.0
    for _ in range(ESS_DRAWS):
        batch = Batch(problem.hidden, problem.target, problem.weight, problem.bias)
        noise = sampler.given(batch, shared=shared)
        drawn = noise.sample(size, generator=generator)
        (logit,) = chosen_logits(problem.hidden, problem.weight, drawn.ids, linear_bias=problem.bias)
        candidates += (~drawn.padding).sum(-1).double().mean().item() / ESS_DRAWS
        if logit.shape[1] > 0:
            effective += effective_sample_size(logit, drawn.log_expected_count).mean().item() / ESS_DRAWS
    return {"candidates": candidates, "effective_sample_size": effective}


class Cell(NamedTuple):
    """The estimators that take the same candidates: of one sampler, distinct or not, k of them."""

    sampler: str
    distinct: bool
    k: int
    estimators: list[str]


def cells(problem: Problem, options: StudyOptions) -> Iterator[Cell]:
    """List what there is to measure: no distinct sets of more than all classes, no kind that a sampler lacks."""
    for name in options.samplers:
        noise = SAMPLERS[name]
        for distinct in (False, True):
            if not (noise.distinct if distinct else noise.iid):
                continue
            takes = ("distinct", *(() if noise.iid else ("either",))) if distinct else ("iid", "either")
            chosen = [e for e in options.estimators if ESTIMATORS[e].draws in takes]
            for k in options.num_samples:
                if chosen and not (distinct and k > problem.num_classes):
                    yield Cell(name, distinct, k, chosen)


def study_estimators(problem: Problem, options: StudyOptions) -> dict[str, Any]:
    """Measure every estimator with every sampler at every k.

    Returns:
        What `results.json` holds: the problem, the options, the noise of the mini-batch itself, and per
        estimator and sampler the figures at each k and the numbers of samples that they imply.

    Raises:
        ValueError: no combination of estimator, sampler and k that exists, or a target that a sampler never draws.
    """
    chosen = list(cells(problem, options))
    if not chosen:
        raise ValueError(
            f"samplers: expected one that draws what {', '.join(options.estimators)} takes, for k of at most "
            f"{problem.num_classes} where classes are distinct, got {', '.join(options.samplers)}"
        )
    exact = exact_gradients(problem)
    points: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in track(chosen, "estimators", transient=True, disable=not sys.stderr.isatty()):
        sampler = SAMPLERS[cell.sampler].build(problem, cell.distinct, cell.k)
        sizes = sample_sizes(problem, sampler, cell.k, shared=options.shared, seed=options.seed)
        for name in cell.estimators:
            head = build_head(name, problem, sampler, cell.k, shared=options.shared)
            figures = measure(head, problem, exact, repeats=options.repeats, seed=options.seed)
            points.setdefault((name, cell.sampler), []).append({"k": cell.k, **sizes, **figures})
    noise = mini_batch_noise(problem, exact["class_rows"])
    return {
        **surroundings(),
        "problem": {
            "source": problem.source,
            "rows": problem.num_rows,
            "num_classes": problem.num_classes,
            "width": problem.hidden.shape[1],
            "gradient_norm": {part: norm(exact[part]) for part in PARTS},
            "mini_batch_noise": noise,
        },
        "options": asdict(options),
        "curves": [
            {
                "estimator": name,
                "sampler": sampler,
                "points": points[name, sampler],
                "implied": implied(points[name, sampler], options.accuracy, noise, limit(name, problem)),
            }
            for name in options.estimators
            for sampler in options.samplers
            if (name, sampler) in points
        ],
    }


def limit(estimator: str, problem: Problem) -> int | None:
    """The k at which an estimator is exact: a distinct set of all classes."""
    return problem.num_classes if ESTIMATORS[estimator].draws == "distinct" else None


def implied(
    points: list[dict[str, Any]], accuracy: float, noise: float, limit: int | None
) -> dict[str, dict[str, Any]]:
    """Return the numbers of samples for the accuracy, by part, and for the noise of the mini-batch itself."""
    found = {
        part: implied_samples([(point["k"], point[part]) for point in points], accuracy, limit=limit)
        for part in PARTS
    }
    rescaled = [(point["k"], unit_gain(point["class_rows"])) for point in points]
    found["mini_batch_noise"] = implied_samples(rescaled, noise, limit=limit)
    return {name: asdict(answer) for name, answer in found.items()}
