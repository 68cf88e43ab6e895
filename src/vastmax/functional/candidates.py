"""Logits of sampled candidates and how often they are expected: corrections, and what they estimate together."""

from __future__ import annotations

import torch
from torch import Tensor

from vastmax.functional.precision import at_least_float32
from vastmax.validation import check_finite


def log_partition_estimate(
    sampled_logit: Tensor, sampled_log_count: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    r"""Return the log of the importance-sampling estimate of each row's partition.

    $$\log \hat Z = \log \sum_j e^{s_j - \log m_j}, \qquad \mathbb{E}\, \hat Z = \sum_c e^{s_c}$$

    Args:
        sampled_logit: (..., K).
        sampled_log_count: (K,) or (..., K) log expected count of each candidate.
        mask: (..., K) bool, True where a candidate is left out.

    Returns:
        (...) in nats, -inf in a row without candidates; at least float32.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> log_partition_estimate(torch.zeros(2), torch.tensor([0.25, 0.5]).log()).exp()  # 4 + 2
        tensor(6.)
    """
    return log_mass(log_ratio(sampled_logit, sampled_log_count, mask))


def log_mass(terms: Tensor, beside: Tensor | None = None) -> Tensor:
    r"""$\log \sum_j e^{x_j - t}$ (...) of terms (..., K) beside t (...): -inf, without a gradient, of nothing.

    The largest term stands apart until t is taken off it, so that an offset of both costs no digit. In the mass its
    1 stands apart from the others, which may be so small that they would be lost beside it.
    """
    if terms.shape[-1] == 0:
        return terms.sum(-1) - (torch.inf if beside is None else torch.inf + beside)
    bounds, place = torch.finfo(terms.dtype), terms.detach().argmax(-1, keepdim=True)
    first, others = terms.gather(-1, place).squeeze(-1), terms.scatter(-1, place, -torch.inf)
    largest = first.detach().clamp(bounds.min, bounds.max)
    added = (others - largest.unsqueeze(-1)).exp().sum(-1) + torch.expm1(first - largest)
    nothing = first.isneginf()
    log = added.masked_fill(nothing, 0.0).log1p().masked_fill(nothing, -torch.inf)
    return log + (largest if beside is None else largest - beside)


def effective_sample_size(
    sampled_logit: Tensor, sampled_log_count: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    r"""Return how many equally weighted candidates the importance weights of a row are worth.

    $$\text{ESS} = \frac{(\sum_j w_j)^2}{\sum_j w_j^2}, \qquad w_j = e^{s_j} / m_j$$

    Args:
        sampled_logit: (..., K).
        sampled_log_count: (K,) or (..., K) log expected count of each candidate.
        mask: (..., K) bool, True where a candidate is left out.

    Returns:
        (...) between 1 and K, 0 in a row without candidates; at least float32.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> effective_sample_size(torch.zeros(4), torch.zeros(4))
        tensor(4.)
    """
    log_weight = log_ratio(sampled_logit, sampled_log_count, mask)
    log_weight = log_weight - log_weight.detach().amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    weight = log_weight.exp()
    return weight.sum(-1).square() / weight.square().sum(-1).clamp(min=torch.finfo(weight.dtype).tiny)


def beside_target(target_logit: Tensor, sampled_logit: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, in at least float32, less the target's: a loss of their differences then keeps its digits.

    In float32 logits of 1e6 are known to 1/16, and so is a log-partition of theirs. A target's logit of -inf stays.
    """
    target, sampled = uncorrected(target_logit, sampled_logit, None)
    base = target.detach().masked_fill(target.isneginf(), 0.0)
    return target - base, sampled - base.unsqueeze(-1)


def corrected(
    target_logit: Tensor,
    sampled_logit: Tensor,
    target_log_count: Tensor,
    sampled_log_count: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Subtract the log counts; a candidate that is left out becomes -inf."""
    target, _ = uncorrected(target_logit, sampled_logit, mask)
    check_target_log_count(target_log_count, target)
    return target - target_log_count.to(target.dtype), log_ratio(sampled_logit, sampled_log_count, mask)


def check_target_log_count(target_log_count: Tensor, target_logit: Tensor) -> None:
    """Raise ValueError unless each target has one finite log count."""
    if target_log_count.shape != target_logit.shape:
        raise ValueError(
            f"target_log_count: expected shape {tuple(target_logit.shape)}, got {tuple(target_log_count.shape)}"
        )
    check_finite("target_log_count", target_log_count)


def uncorrected(target_logit: Tensor, sampled_logit: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits in at least float32; a candidate that is left out becomes -inf."""
    rows = target_logit.shape
    if sampled_logit.shape[:-1] != rows or sampled_logit.ndim == 0:
        raise ValueError(f"sampled_logit: expected shape {(*rows, 'K')}, got {tuple(sampled_logit.shape)}")
    return at_least_float32(target_logit), _masked(at_least_float32(sampled_logit), mask)


def log_ratio(sampled_logit: Tensor, sampled_log_count: Tensor, mask: Tensor | None) -> Tensor:
    """Logit less log count: the log of the term that each candidate adds to an estimate of Z."""
    check_candidates("sampled_log_count", sampled_log_count, sampled_logit)
    logit = at_least_float32(sampled_logit)
    return _masked(logit - sampled_log_count.to(logit.dtype), mask)


def _masked(sampled: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return sampled
    if mask.shape != sampled.shape:
        raise ValueError(f"mask: expected shape {tuple(sampled.shape)}, got {tuple(mask.shape)}")
    return sampled.masked_fill(mask, -torch.inf)


def check_candidates(name: str, values: Tensor, sampled_logit: Tensor) -> None:
    """Raise ValueError unless `values` has one number per candidate, of all rows or of each."""
    if values.shape not in (sampled_logit.shape, sampled_logit.shape[-1:]):
        raise ValueError(
            f"{name}: expected shape {tuple(sampled_logit.shape[-1:])} or {tuple(sampled_logit.shape)}, "
            f"got {tuple(values.shape)}"
        )
