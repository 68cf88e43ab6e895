"""Candidates without those that a row is known to have as other positives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vastmax.samplers.base import Candidates


def without(candidates: Candidates, exclude: Tensor, target: Tensor) -> Candidates:
    """Return the candidates with a count of +inf, as padding has it, where a row excludes their class.

    The other candidates are then what a draw from the other classes would give: as many as it happens to be
    independent draws, or each class in the set independently. So their expected counts stay, up to a constant.

    Args:
        candidates: ids (K,) or (N, K).
        exclude: (N, E) int64 class ids; others, such as an `ignore_index`, exclude nothing.
        target: (N,) int64, which is never excluded.
    """
    if candidates.ids.ndim == 1:
        excluded = _shared_among(candidates.ids, exclude)
    else:
        excluded = is_among(candidates.ids, exclude.sort(-1).values)
    excluded &= candidates.ids != target.unsqueeze(-1)
    return candidates._replace(log_expected_count=torch.where(excluded, math.inf, candidates.log_expected_count))


def is_among(ids: Tensor, ordered: Tensor) -> Tensor:
    """Whether ids are among some in rising order: (T,), or (N, T) where the first axis of ids is the rows'."""
    if ordered.shape[-1] == 0:
        return torch.zeros_like(ids, dtype=torch.bool)
    if ordered.ndim == 1:
        place = torch.searchsorted(ordered, ids).clamp(max=len(ordered) - 1)
        return ordered[place] == ids
    flat = ids.reshape(len(ordered), math.prod(ids.shape[1:])).contiguous()
    place = torch.searchsorted(ordered, flat).clamp(max=ordered.shape[1] - 1)
    return (ordered.gather(1, place) == flat).view(ids.shape)


def _shared_among(ids: Tensor, exclude: Tensor) -> Tensor:
    """Whether each of ids (K,) is among those of each row: (N, K), for the price of looking up N x E."""
    classes, column = ids.unique(return_inverse=True)
    place = torch.searchsorted(classes, exclude.contiguous()).clamp(max=max(len(classes) - 1, 0))
    if len(classes) > 0:
        place = place.masked_fill(classes[place] != exclude, len(classes))
    table = torch.zeros(len(exclude), len(classes) + 1, dtype=torch.bool, device=ids.device)
    return table.scatter_(1, place, True)[:, column]
