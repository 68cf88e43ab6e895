"""Occurrences of class ids, sorted so that those of one class stand together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vastmax.checking import at_hand


class Segments(NamedTuple):
    """Runs of equal ids.

    Attributes:
        classes: (S,) int64, the distinct ids, rising; -1 in places left over behind them.
        starts: (S,) int64, where the run of each begins in `order`; L in places left over.
        order: (L,) int64, places in `ids`: run by run, rising within a run.
    """

    classes: Tensor
    starts: Tensor
    order: Tensor


def segments(ids: Tensor, num_classes: int) -> Segments:
    """Sort the occurrences (L,) of ids below `num_classes`.

    There are as many classes as places, S = L, where the number of distinct ones cannot be looked at.
    """
    sorted_ids, order = ids.sort(stable=True)
    if at_hand(ids):
        classes, counts = sorted_ids.unique_consecutive(return_counts=True)
        return Segments(classes, counts.cumsum(0) - counts, order)
    run = (sorted_ids != sorted_ids.roll(1)).cumsum(0) - (sorted_ids[:1] != sorted_ids[-1:]).long()
    place = torch.arange(len(ids), device=ids.device)
    starts = torch.full_like(ids, len(ids)).scatter_reduce_(0, run, place, "amin")
    return Segments(torch.full_like(ids, -1).scatter_(0, run, sorted_ids), starts, order)
