"""The unigram sampler: its construction, and draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.contest import rows_of
from benchmarks.floors import copy_elements, copy_floor
from benchmarks.rows import Floor, Row, Target
from benchmarks.settings import Settings
from benchmarks.timing import Measured, Timer, Wall, side_by_side
from vastmax import samplers

DRAWS = 1_000_000


def counts_of(num_classes: int) -> torch.Tensor:
    """Counts by Zipf's law, in no order."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.arange(1, num_classes + 1, dtype=torch.float64).reciprocal_().mul_(1e9)
    return counts[torch.randperm(num_classes, generator=generator)]


def cumulative_sum(counts: torch.Tensor) -> np.ndarray[Any, Any]:
    """What a binary search needs."""
    return np.cumsum(counts.numpy() ** 0.75)


def searched(cumulative: torch.Tensor) -> torch.Tensor:
    """Draw by a binary search."""
    return torch.searchsorted(cumulative, torch.rand(DRAWS, dtype=torch.float64), right=True)


def multinomial(weight: torch.Tensor) -> torch.Tensor:
    """Draw by torch."""
    return torch.multinomial(weight, DRAWS, replacement=True)


def build(settings: Settings, num_classes: int) -> list[Row]:
    """Measure the construction."""
    counts = counts_of(num_classes)
    found = side_by_side(
        {
            "vastmax Unigram": partial(Wall, partial(samplers.Unigram, counts)),
            "numpy cumulative sum": partial(Wall, partial(cumulative_sum, counts)),
        },
        floors={"copy": copy_elements(num_classes)},
        rounds=settings.rounds,
        memory=True,
    )
    copied = found.pop("copy")
    # The counts are read, and a threshold and an alias, or a cumulative probability, and a log-probability written.
    floor = copy_floor(4 * 8 * num_classes, "counts read, tables written", copied, num_classes)

    def targets(name: str) -> list[Target]:
        if not name.startswith("vastmax"):
            return []
        return [Target("construction", found[name].median, 2.0, unit="s")]

    return rows_of("unigram sampler, construction", found, floor=floor, targets=targets, classes=num_classes)


def draw(settings: Settings, num_classes: int) -> list[Row]:
    """Measure draws."""
    counts = counts_of(num_classes)
    weight = (counts**0.75).float()
    cumulative = (counts**0.75).cumsum(0)
    cumulative /= cumulative[-1].clone()
    noise = samplers.Unigram(counts)

    def entries() -> Timer:
        table = torch.zeros(num_classes, 2)
        ids = torch.randint(num_classes, (DRAWS,))
        return Wall(lambda: table.index_select(0, ids))

    contenders: dict[str, Callable[[], Timer]] = {
        "vastmax Unigram": partial(Wall, partial(noise.sample, DRAWS)),
        "torch cumulative sum + searchsorted": partial(Wall, partial(searched, cumulative)),
        "torch.multinomial": partial(Wall, partial(multinomial, weight)),
    }
    found = side_by_side(
        contenders,
        floors={"entries": entries},
        rounds=settings.rounds,
        seconds=settings.seconds / 2,
        memory=True,
    )
    read = found.pop("entries")
    floor = None
    if read.median is not None:
        floor = Floor(read.median, "a random entry of 8 bytes read for each draw")

    def targets(name: str) -> list[Target]:
        if name != "vastmax Unigram":
            return []
        return [Target("draws", draws_per_second(found[name]), 20.0, at_most=False, unit="M/s")]

    peers = {"over searchsorted": "torch cumulative sum + searchsorted", "over multinomial": "torch.multinomial"}
    measure = f"unigram sampler, {DRAWS:,} draws"
    return rows_of(measure, found, floor=floor, peers=peers, targets=targets, classes=num_classes)


def draws_per_second(measured: Measured) -> float | None:
    """Millions of draws a second."""
    return None if measured.median is None else DRAWS / measured.median / 1e6


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    rows = []
    for num_classes in (10**7, 10**8) if settings.full else (10**7,):
        scaled = settings.scaled(num_classes)
        rows += build(settings, scaled) + draw(settings, scaled)
    return rows
