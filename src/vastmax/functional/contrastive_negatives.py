"""The negatives of contrastive losses: shared by the rows or each row's own, weighted by their hardness or not.

All of it is relative to the logit of each row's own key, so that an offset of the logits costs no digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.arithmetic import without_autocast
from vastmax.compilation import Coded
from vastmax.functional.candidates import log_mass
from vastmax.scoring import linear_log_partition, linear_loss
from vastmax.validation import check_finite, check_hidden


class LeftOut(NamedTuple):
    """Which keys are no negatives of which queries, bool, True where one is left out; no columns leave out nothing.

    Attributes:
        pairs: (N, N) or (N, 0), the keys of the batch.
        negatives: (N, K) or (N, 0), the further negatives.
    """

    pairs: Tensor
    negatives: Tensor

    def transposed(self) -> LeftOut:
        """The same of the keys' queries."""
        return self if self.pairs.shape[1] == 0 else LeftOut(self.pairs.t(), self.negatives)


def own_logits(query: Tensor, negatives: Tensor, left_out: Tensor) -> Tensor:
    """Logits (N, K) of each row's own negatives (N, K, d), -inf where left out."""
    dtype = torch.promote_types(query.dtype, negatives.dtype)
    with without_autocast(query.device):
        logits = (negatives.to(dtype) @ query.to(dtype).unsqueeze(-1)).squeeze(-1)
    return logits if left_out.shape[1] == 0 else logits.masked_fill(left_out, -torch.inf)


def log_mass_beside(query: Tensor, shared: Tensor, logit: Tensor) -> Tensor:
    r"""$\log \sum_j e^{s_{rj} - t_r}$ (N,) of negatives (K, d) that the rows share, beside logits t (N,)."""
    # One more feature takes t off every logit of a row as it is made: off a log-partition it would come too late.
    query = torch.cat([query, -logit.unsqueeze(-1)], -1)
    shared = torch.cat([shared, shared.new_ones(len(shared), 1)], -1)
    return linear_log_partition(query, shared).log_partition


def log_denominator(
    query: Tensor,
    classes: Tensor,
    groups: Tensor,
    place: Tensor,
    group: Tensor,
    key_logit: Tensor,
    own: Tensor,
    left_out: LeftOut,
    *,
    views: int,
    hardness: float,
    decoupled: bool,
    several: bool,
) -> Tensor:
    r"""The log of the denominator (N,) less the own key's logit, the classes scored a few rows at a time.

    $$\log \Big( \sum_{p \in P_r} e^{s_{rp}} + m_r \sum_{j \in A_r} w_{rj} e^{s_{rj}} \Big) - t_r$$

    Args:
        query: (N, d) the rows.
        classes: (C, d) keys of the batch, once or of both views, then the shared negatives.
        groups: (C,) the group of each; what is of a row's group is a positive, and all else a negative.
        place: (N, 2) where among the classes a row's own key is, and the row itself if there are both views.
        group: (N,) the group of each row.
        key_logit: (N,) t.
        own: (N, K) logits of the row's own negatives.
        left_out: what is no negative.
        views: how often the keys of the batch are among the classes.
        hardness: beta.
        decoupled: whether the positives are left out of the sum.
        several: whether a row may have other positives than its own key.
    """
    of_block = _Denominator(views, hardness, decoupled, several)
    rows = (key_logit, place, group, own, *left_out)
    return linear_loss(of_block, query, classes, rows=rows, shared=(groups,))


@dataclass(frozen=True)
class _Denominator(Coded):
    """What `log_denominator` makes of the logits (n, C) of a few rows."""

    views: int
    hardness: float
    decoupled: bool
    several: bool

    def __call__(
        self,
        logits: Tensor,
        key_logit: Tensor,
        place: Tensor,
        group: Tensor,
        own: Tensor,
        pairs: Tensor,
        negatives: Tensor,
        groups: Tensor,
    ) -> Tensor:
        # A row's own key and the row itself: all that is no negative where there are no labels and no mask.
        of_row = place[:, : self.views]
        compared, positive = logits.scatter(-1, of_row, -torch.inf), None
        if self.several:
            positive = (group.unsqueeze(-1) == groups).scatter_(-1, of_row[:, 1:], False)
            compared = compared.masked_fill_(positive, -torch.inf)
        masked = torch.cat([*[pairs] * self.views, negatives], -1)
        compared[:, : masked.shape[1]].masked_fill_(masked, -torch.inf)
        if own.shape[1] > 0:
            compared = torch.cat([compared, own], -1)
        mass = weighted_log_mass(compared, key_logit, self.hardness)
        if self.decoupled:
            return mass
        if positive is None:
            return beside_one_positive(mass)
        return torch.logaddexp(log_mass(logits.masked_fill(~positive, -torch.inf), key_logit), mass)


def beside_one_positive(mass: Tensor) -> Tensor:
    """The log of the mass of a positive and its negatives, all less the positive's logit."""
    return -functional.logsigmoid(-mass)


def weighted_log_mass(logits: Tensor, beside: Tensor, hardness: float) -> Tensor:
    r"""$\log \big( m \sum_j e^{(1 + \beta) s_j} / \sum_j e^{\beta s_j} \big) - t$ of m logits, those not -inf."""
    if hardness == 0.0:
        return log_mass(logits, beside)
    negative = ~logits.isneginf()
    none = ~negative.any(-1)
    # A row without negatives has the mass 0; any other logits than -inf keep its gradient from nan.
    logits = (logits - beside.unsqueeze(-1)).masked_fill(none.unsqueeze(-1), 0.0)
    tilt = log_mass((1 + hardness) * logits) - log_mass(hardness * logits)
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


def what_is_left_out(mask: Tensor | None, negatives: Tensor | None, query: Tensor, *, in_batch: bool) -> LeftOut:
    """Cut a mask into keys of the batch and further negatives; raise unless it is bool and of their numbers."""
    num_rows = len(query)
    more = 0 if negatives is None else negatives.shape[-2]
    if mask is None:
        nothing = query.new_empty(num_rows, 0, dtype=torch.bool)
        return LeftOut(nothing, nothing)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask: expected a bool tensor, True where a key is no negative of a query, got {kind}")
    of_batch = num_rows if in_batch else 0
    widths = [of_batch + more] if more == 0 or not in_batch else [of_batch, of_batch + more]
    if mask.shape not in [(num_rows, width) for width in widths]:
        expected = " or ".join(str((num_rows, width)) for width in widths)
        raise ValueError(f"mask: expected shape {expected}, the keys and then `negatives`, got {tuple(mask.shape)}")
    return LeftOut(mask[:, :of_batch], mask[:, of_batch:])
