r"""Losses of each row's logits of some classes, with what their gradient is made of, in one pass.

Each returns the loss of every row, its slope with respect to every logit, and its gradient with respect to hidden:
the class rows are read once. The gradients are those of the rows' own losses; what flows back from above scales
them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.kernels.reference.gather import gather_dot, gather_sum


class RowLosses(NamedTuple):
    r"""Losses of rows and their derivatives.

    Attributes:
        loss: (N,) in nats.
        slope: (N, K) $\partial \ell_r / \partial (h_r \cdot w_{c_{rj}} + b_{c_{rj}})$.
        grad_hidden: (N, d) $\partial \ell_r / \partial h_r$.
    """

    loss: Tensor
    slope: Tensor
    grad_hidden: Tensor


def logistic_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    positive: Tensor,
    offset: Tensor,
    share: Tensor,
    scale: float,
) -> RowLosses:
    r"""Return the logistic losses of each row with classes of its own, some true and some false.

    $$\ell_r = \sum_j v_{rj} \log(1 + e^{-y_{rj} x_{rj}}), \qquad
      x_{rj} = a (h_r \cdot w_{c_{rj}} + b_{c_{rj}}) - o_{rj}$$

    Args:
        hidden: (N, d) in the dtype of the arithmetic.
        weight: (V, d), perhaps of lower precision.
        bias: (V,) or None.
        ids: (N, K) int64.
        positive: (N, K) bool: whether y is 1 or -1.
        offset: (N, K) o, in the dtype of the arithmetic.
        share: (N, K) v, in the dtype of the arithmetic; a class of share 0 counts for nothing.
        scale: a.
    """
    logits = scale * _scores(hidden, weight, bias, ids) - offset
    against = torch.where(positive, -logits, logits).masked_fill(share == 0, 0.0)
    loss = (share * functional.softplus(against)).sum(-1)
    slope = scale * share * torch.where(positive, -against.sigmoid(), against.sigmoid())
    return RowLosses(loss, slope, _weighted_rows(weight, ids, slope))


def softmax_rows(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, offset: Tensor, scale: float
) -> RowLosses:
    r"""Return the cross-entropy of each row's first class among classes of its own.

    $$\ell_r = \log \sum_j e^{x_{rj}} - x_{r0}, \qquad x_{rj} = a (h_r \cdot w_{c_{rj}} + b_{c_{rj}}) - o_{rj}$$

    Args:
        hidden: (N, d) in the dtype of the arithmetic.
        weight: (V, d), perhaps of lower precision.
        bias: (V,) or None.
        ids: (N, K) int64, K at least 1.
        offset: (N, K) o, in the dtype of the arithmetic; +inf leaves a class out.
        scale: a.
    """
    scores = _scores(hidden, weight, bias, ids)
    slope = (scores - _finite(scores[:, :1])).mul_(scale).sub_(offset)
    loss, slope[:, 0] = _cross_entropy_(slope[:, 0].clone(), slope[:, 1:], scale)
    return RowLosses(loss, slope, _weighted_rows(weight, ids, slope))


def logistic_logits_(logits: Tensor, offset: Tensor, scale: float) -> Tensor:
    r"""Return the logistic losses (N,) of rows with false classes, and leave the slopes in `logits`.

    $$\ell_r = \sum_j \log(1 + e^{x_{rj}}), \qquad x_{rj} = a s_{rj} - o_{rj}$$

    Args:
        logits: (N, K) s; overwritten by $\partial \ell_r / \partial s_{rj}$.
        offset: (K,) or (N, K) o, in the dtype of `logits`; +inf leaves a class out.
        scale: a.
    """
    against = logits.mul_(scale).sub_(offset)
    loss = functional.softplus(against).sum(-1)
    against.sigmoid_().mul_(scale)
    return loss


def softmax_logits_(
    target_logit: Tensor,
    logits: Tensor,
    target_offset: Tensor,
    offset: Tensor,
    ids: Tensor,
    left_out: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy (N,) of targets among themselves and shared classes, and its slope (N,) in them.

    $$\ell_r = \log \Big(e^{x_r} + \sum_j e^{x_{rj}}\Big) - x_r, \qquad
      x_r = a t_r - o_r, \quad x_{rj} = a s_{rj} - o_{rj}$$

    Args:
        target_logit: (N,) t.
        logits: (N, K) s; overwritten by $\partial \ell_r / \partial s_{rj}$.
        target_offset: (N,) o_r, in the dtype of `logits`.
        offset: (K,) or (N, K) o, in the dtype of `logits`; +inf leaves a class out.
        ids: (K,) int64 of the shared classes.
        left_out: (N,) int64: the class among `ids` that a row leaves out; -1 for none.
        scale: a.
    """
    base = _finite(target_logit)
    logits.sub_(base.unsqueeze(-1)).mul_(scale).sub_(offset)
    logits.masked_fill_(ids == left_out.unsqueeze(-1), -torch.inf)
    return _cross_entropy_(scale * (target_logit - base) - target_offset, logits, scale)


def _finite(target_logit: Tensor) -> Tensor:
    """What the logits of a row are taken less: the target's, so that none of their digits is lost to an offset."""
    return target_logit.masked_fill(target_logit.isneginf(), 0.0)


def _cross_entropy_(target: Tensor, others: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The cross-entropy of targets (N,) beside others (N, K), and its slopes: returned, and left in `others`.

    Where the target leads, by the others' mass alone: a sum that holds the target's 1 has no room for a small one.
    """
    shift = torch.maximum(target, others.amax(-1)) if others.shape[1] > 0 else target
    shift = shift.clamp(min=torch.finfo(shift.dtype).min)
    mass = others.sub_(shift.unsqueeze(-1)).exp_().sum(-1)
    total = mass + (target - shift).exp()
    loss = torch.where(target == shift, mass.log1p(), total.log() + (shift - target))
    others.mul_((scale / total).unsqueeze(-1))
    return loss, -scale * mass / total


def _scores(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
    scores = gather_dot(hidden, weight, ids)
    return scores if bias is None else scores + bias[ids].to(scores.dtype)


def _weighted_rows(weight: Tensor, ids: Tensor, coefficient: Tensor) -> Tensor:
    starts = torch.arange(ids.shape[0], device=ids.device) * ids.shape[1]
    return gather_sum(weight, ids.reshape(-1), starts, coefficient.reshape(-1))
