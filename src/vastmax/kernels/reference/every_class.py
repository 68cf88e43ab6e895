"""Every class: the log-partition of each row and its target's logit, and what flows back from them."""

from __future__ import annotations

import torch
from torch import Tensor


def log_partition(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    r"""Return the log-partition of each row and the logit of its target.

    $$\log Z_r = \log \sum_{c=1}^{V} e^{s_{rc}}, \qquad s_{rc} = a \tanh((h_r \cdot w_c + b_c) / a)$$

    Without a soft cap the logits are the scores themselves. A class of bias -inf is masked in either case.

    Args:
        hidden: (N, d).
        weight: (V, d), V at least 1.
        bias: (V,) or None.
        target: (N,) int64.
        softcap: a, or None.

    Returns:
        $\log Z$ and $s_{r t_r}$, each (N,), in at least float32.
    """
    logits = _logits(hidden, weight, bias, softcap)
    return logits.logsumexp(-1), logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def log_partition_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_partition: Tensor,
    grad_log_partition: Tensor,
    grad_target_logit: Tensor,
    *,
    wanted: tuple[bool, bool, bool] = (True, True, True),
    softcap: float | None = None,
    filter_eps: float | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    r"""Return the gradients of hidden, weight and bias, given those of what `log_partition` returns.

    $$\frac{\partial \ell}{\partial s_{rc}} = u_r\, e^{s_{rc} - \log Z_r} + v_r\, [c = t_r]$$

    Args:
        hidden: (N, d).
        weight: (V, d), V at least 1.
        bias: (V,) or None.
        target: (N,) int64.
        log_partition: (N,), as `log_partition` returned it.
        grad_log_partition: (N,) u.
        grad_target_logit: (N,) v.
        wanted: which of the three gradients are wanted; None takes the place of one that is not, or has no tensor.
        softcap: as `log_partition` was given it.
        filter_eps: a tile of rows and classes may be left out if all of its probabilities are below this and none
            of its classes is the target of one of its rows. Here a tile is one logit.

    Returns:
        (N, d), (V, d) and (V,), in at least float32.
    """
    logits = _logits(hidden, weight, bias, softcap)
    is_target = torch.arange(weight.shape[0], device=target.device) == target.unsqueeze(-1)
    probability = (logits - log_partition.unsqueeze(-1)).exp()
    if filter_eps is not None:
        probability = probability.masked_fill((probability < filter_eps) & ~is_target, 0.0)
    grad = grad_log_partition.unsqueeze(-1) * probability
    grad += torch.where(is_target, grad_target_logit.unsqueeze(-1), 0.0)
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
