"""The negatives of contrastive losses: shared by the rows or each row's own, weighted by their hardness or not."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vastmax.scoring import linear_log_partition, linear_loss
from vastmax.validation import check_finite, check_hidden


def own_logits(query: Tensor, negatives: Tensor | None) -> Tensor:
    """Logits (N, K) of each row's own negatives, none of them if there are no such."""
    if negatives is None or negatives.ndim == 2:
        return query.new_empty(len(query), 0)
    dtype = torch.promote_types(query.dtype, negatives.dtype)
    with torch.autocast(query.device.type, enabled=False):
        return (negatives.to(dtype) @ query.to(dtype).unsqueeze(-1)).squeeze(-1)


def negative_log_mass(query: Tensor, shared: Tensor, own: Tensor, hardness: float) -> Tensor:
    """The log of the mass (N,) of negatives that are either shared by the rows or each row's own."""
    if len(shared) == 0:
        return _log_mass(own, hardness)
    if hardness == 0.0:
        return linear_log_partition(query, shared).log_partition
    return linear_loss(partial(_log_mass, hardness=hardness), query, shared)


def hard_log_partition(
    query: Tensor, key: Tensor, group: Tensor, shared: Tensor, own: Tensor, hardness: float
) -> Tensor:
    """The log-partition (N,) of rows whose positives are the keys of their group; all else is a negative."""
    no_group = group.new_full((len(shared),), -1)
    return linear_loss(
        partial(_log_partition_by_group, hardness=hardness),
        query,
        torch.cat([key, shared]),
        rows=(group, own),
        shared=(torch.cat([group, no_group]),),
    )


def _log_partition_by_group(
    logits: Tensor, group: Tensor, own: Tensor, groups: Tensor, *, hardness: float
) -> Tensor:
    positive = group.unsqueeze(-1) == groups
    negatives = torch.cat([logits.masked_fill(positive, -torch.inf), own], -1)
    positives = logits.masked_fill(~positive, -torch.inf)
    return torch.logaddexp(positives.logsumexp(-1), _log_mass(negatives, hardness))


def _log_mass(logits: Tensor, hardness: float) -> Tensor:
    r"""$\log \big( m \sum_j e^{(1 + \beta) s_j} / \sum_j e^{\beta s_j} \big)$ of the m logits that are not -inf."""
    if hardness == 0.0:
        return logits.logsumexp(-1)
    negative = ~logits.isneginf()
    none = ~negative.any(-1)
    # A row without negatives has the mass 0; any other logits than -inf keep its gradient from nan.
    logits = logits.masked_fill(none.unsqueeze(-1), 0.0)
    tilt = ((1 + hardness) * logits).logsumexp(-1) - (hardness * logits).logsumexp(-1)
    return (negative.sum(-1).to(tilt.dtype).log() + tilt).masked_fill(none, -torch.inf)


def check_negatives(negatives: Tensor | None, query: Tensor, *, in_batch: bool) -> None:
    """Raise unless `negatives` are finite, (K, d) or (N, K, d), and there where the batch has none."""
    if negatives is None:
        if not in_batch:
            raise ValueError("negatives: expected a tensor with in_batch=False, which leaves no others, got None")
        return
    num_rows, features = query.shape
    check_hidden("negatives", negatives, features)
    if negatives.ndim not in (2, 3) or (negatives.ndim == 3 and len(negatives) != num_rows):
        raise ValueError(
            f"negatives: expected shape (K, {features}), shared by the rows, or ({num_rows}, K, {features}), "
            f"got {tuple(negatives.shape)}"
        )
    check_finite("negatives", negatives)
