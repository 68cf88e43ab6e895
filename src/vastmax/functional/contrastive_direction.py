"""The loss of the queries' own keys among all that they are compared with: one direction of a contrastive loss."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vastmax.functional.candidates import log_mass
from vastmax.functional.contrastive_negatives import (
    LeftOut,
    beside_one_positive,
    log_denominator,
    log_mass_beside,
    own_logits,
    weighted_log_mass,
)
from vastmax.reduction import reduce_rows
from vastmax.scoring import linear_cross_entropy


def one_direction(
    query: Tensor,
    key: Tensor,
    left_out: LeftOut,
    *,
    negatives: Tensor | None,
    temperature: float | Tensor,
    labels: Tensor | None,
    hardness: float,
    both_views: bool,
    decoupled: bool,
    in_batch: bool,
    sample_weight: Tensor | None,
    reduction: str,
) -> Tensor:
    """The loss of each query's own key among the others, reduced; the options are those of `info_nce`."""
    rows = query / temperature
    place = torch.arange(len(query), device=query.device)
    group = place if labels is None else _groups(labels)
    own, shared = rows.new_empty(len(rows), 0), key[:0]
    if negatives is not None and negatives.ndim == 2:
        shared = negatives
    elif negatives is not None:
        own = own_logits(rows, negatives, left_out.negatives)
        left_out = left_out._replace(negatives=left_out.negatives[:, :0])
    masked = left_out.pairs.shape[1] + left_out.negatives.shape[1] > 0
    plain = not (masked or both_views or decoupled) and hardness == 0.0

    reduced = partial(reduce_rows, weight=sample_weight, reduction=reduction)
    to_mean = None
    if labels is not None:
        # From the logit of a row's own key to the mean of its positives': that one has no exact value at an offset.
        to_mean = (rows * (key - _positive_means(query, key, group, both_views=both_views))).sum(-1)
    if plain and in_batch and own.shape[1] == 0:
        classes = torch.cat([key, shared]) if len(shared) else key
        loss = linear_cross_entropy(
            rows, classes, place, ignore_index=None, sample_weight=sample_weight, reduction=reduction
        )
        return loss if to_mean is None else loss + reduced(to_mean)

    key_logit = (rows * key).sum(-1)
    if plain and in_batch:
        among_keys = linear_cross_entropy(rows, key, place, ignore_index=None, reduction="none")
        loss = torch.logaddexp(among_keys, log_mass(own, key_logit))
    elif in_batch or (len(shared) > 0 and (masked or hardness > 0.0)):
        views = [key, query][: 1 + both_views] if in_batch else []
        loss = log_denominator(
            rows,
            torch.cat([*views, shared]),
            torch.cat([*[group] * len(views), group.new_full((len(shared),), -1)]),
            torch.stack([place, place + len(query)], -1),
            group,
            key_logit,
            own,
            left_out,
            views=len(views),
            hardness=hardness,
            decoupled=decoupled,
            several=labels is not None,
        )
    else:
        if len(shared) > 0:
            mass = log_mass_beside(rows, shared, key_logit)
        else:
            mass = weighted_log_mass(own, key_logit, hardness)
        loss = mass if decoupled else beside_one_positive(mass)
    without = loss.isneginf()  # decoupled from its positives, and no negative
    loss = loss if to_mean is None else loss + to_mean
    return reduced(loss.masked_fill(without, 0.0), ignored=without)


def _groups(labels: Tensor) -> Tensor:
    """The group (N,) of each row, from 0 to N - 1: the first row of its label."""
    ordered, order = labels.sort(stable=True)
    first = torch.searchsorted(ordered, labels)
    return order[first]


def _positive_means(query: Tensor, key: Tensor, group: Tensor, *, both_views: bool) -> Tensor:
    """The mean (N, d) of the keys of each row's group, and of the group's other queries where both are keys."""
    size = torch.zeros_like(group).index_add(0, group, torch.ones_like(group))
    total = torch.zeros_like(key).index_add(0, group, key)
    if both_views:
        return (total.index_add(0, group, query)[group] - query) / (2 * size[group] - 1).unsqueeze(-1)
    return total[group] / size[group].unsqueeze(-1)
