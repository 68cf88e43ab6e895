"""Occurrences of class ids, sorted so that those of one class stand together."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Segments(NamedTuple):
    """Runs of equal ids.

    Attributes:
        classes: (S,) int64, the distinct ids, rising.
        starts: (S,) int64, where the run of each begins in `order`.
        order: (L,) int64, places in `ids`: run by run, rising within a run.
    """

    classes: Tensor
    starts: Tensor
    order: Tensor


def segments(ids: Tensor, num_classes: int) -> Segments:
    """Sort the occurrences (L,) of ids below `num_classes`."""
    sorted_ids, order = ids.sort(stable=True)
    classes, counts = sorted_ids.unique_consecutive(return_counts=True)
    return Segments(classes, counts.cumsum(0) - counts, order)
