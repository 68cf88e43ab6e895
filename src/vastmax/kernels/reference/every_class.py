"""Every class: what each row's log-partition is made of, and what flows back from it."""

from __future__ import annotations

import torch
from torch import Tensor

from vastmax.kernels.reference.softmax_block import BlockSums, row_sums


def split_partition(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, softcap: float | None = None
) -> tuple[Tensor, BlockSums]:
    r"""Return the logit of each row's target, and the maximum and mass of the other classes' logits.

    $$s_{r t_r}, \qquad m_r = \max_{c \ne t_r} s_{rc}, \quad M_r = \sum_{c \ne t_r} e^{s_{rc} - m_r},
      \qquad s_{rc} = a \tanh((h_r \cdot w_c + b_c) / a)$$

    Without a soft cap the logits are the scores themselves. A class of bias -inf is masked in either case.

    Args:
        hidden: (N, d).
        weight: (V, d), V at least 1.
        bias: (V,) or None.
        target: (N,) int64.
        softcap: a, or None.

    Returns:
        (N,) target logits, and sums (N,) of the others; in at least float32.
    """
    logits = _logits(hidden, weight, bias, softcap)
    column = target.unsqueeze(-1)
    return logits.gather(-1, column).squeeze(-1), row_sums(logits.scatter(-1, column, -torch.inf))


def split_partition_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    maximum: Tensor,
    log_mass: Tensor,
    grad_others: Tensor,
    grad_target: Tensor,
    *,
    wanted: tuple[bool, bool, bool] = (True, True, True),
    softcap: float | None = None,
    filter_eps: float | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    r"""Return the gradients of hidden, weight and bias, given what a loss makes of the logits.

    $$\frac{\partial \ell}{\partial s_{rc}} = u_r\, e^{(s_{rc} - m_r) - \mu_r} \quad (c \ne t_r), \qquad
      \frac{\partial \ell}{\partial s_{r t_r}} = v_r$$

    Args:
        hidden: (N, d).
        weight: (V, d), V at least 1.
        bias: (V,) or None.
        target: (N,) int64.
        maximum: (N,) m, of all classes.
        log_mass: (N,) $\mu = \log Z - m$.
        grad_others: (N,) u.
        grad_target: (N,) v.
        wanted: which of the three gradients are wanted; None takes the place of one that is not, or has no tensor.
        softcap: as `split_partition` was given it.
        filter_eps: a tile of rows and classes may be left out if all of its probabilities are below this and none
            of its classes is the target of one of its rows. Here a tile is one logit.

    Returns:
        (N, d), (V, d) and (V,), in at least float32.
    """
    logits = _logits(hidden, weight, bias, softcap)
    is_target = torch.arange(weight.shape[0], device=target.device) == target.unsqueeze(-1)
    probability = ((logits - maximum.unsqueeze(-1)) - log_mass.unsqueeze(-1)).exp()
    if filter_eps is not None:
        probability = probability.masked_fill(probability < filter_eps, 0.0)
    grad = torch.where(is_target, grad_target.unsqueeze(-1), grad_others.unsqueeze(-1) * probability)
    if softcap is not None:
        grad *= torch.where(logits.isneginf(), 0.0, 1 - (logits / softcap).square())
    wants_hidden, wants_weight, wants_bias = wanted
    return (
        grad @ weight.to(grad.dtype) if wants_hidden else None,
        grad.t() @ hidden.to(grad.dtype) if wants_weight else None,
        grad.sum(0) if wants_bias and bias is not None else None,
    )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    scores = hidden.to(dtype) @ weight.to(dtype).t()
    if bias is not None:
        scores += bias.to(dtype)
    if softcap is None:
        return scores
    return (softcap * torch.tanh(scores / softcap)).masked_fill(scores.isneginf(), -torch.inf)
