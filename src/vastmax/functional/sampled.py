r"""Losses on the logits of a target and of sampled candidates.

Notation: $s$ a logit, $y$ the target, $j$ the candidates, $m_c$ the expected count of class $c$ among a row's
candidates ($k q_c$ for $k$ independent draws from $q$). A candidate whose log count is +inf counts for nothing.

Which candidates belong in a loss depends on how they were drawn. `sampled_softmax_loss` keeps a candidate equal
to the target (an accidental hit) if the candidates are independent draws, and leaves it out if they are a set of
distinct classes: either way the optimum is the data's distribution. `nce_loss` and `negative_sampling_loss` keep
it in both cases, because they need the expected count of every class to be $m_c$ whatever the target.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.reduction import reduce_rows
from vastmax.validation import check_finite


def sampled_softmax_loss(
    target_logit: Tensor,
    sampled_logit: Tensor,
    target_log_count: Tensor,
    sampled_log_count: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the cross-entropy of the target among itself and the candidates, logits corrected by log counts.

    $$\ell = -\log \frac{e^{s_y - \log m_y}}{e^{s_y - \log m_y} + \sum_j e^{s_j - \log m_j}}$$

    The correction makes the optimum of $s$ the log-probability of the data up to a constant of the row, for any
    number of candidates. A constant in the log counts cancels. This is also the ranking form of noise-contrastive
    estimation.

    Args:
        target_logit: (N,), or any leading shape (...).
        sampled_logit: (N, K).
        target_log_count: (N,) log expected count of each row's target.
        sampled_log_count: (K,) or (N, K) log expected count of each candidate.
        mask: (N, K) bool, True where a candidate is left out.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (N,) with `reduction="none"`, in nats; at least float32.

    Raises:
        ValueError: shapes that do not fit, or a target whose expected count is 0 or not finite.

    References:
        Jean, Cho, Memisevic and Bengio, On Using Very Large Target Vocabulary for Neural Machine Translation, 2015.
        Ma and Collins, Noise Contrastive Estimation and Negative Sampling for Conditional Models, 2018.

    Example:
        >>> s = torch.tensor([[2.0, 1.0, 0.0]])  # candidates: the two classes that are not the target
        >>> loss = sampled_softmax_loss(s[:, 0], s[:, 1:], torch.zeros(1), torch.zeros(2))
        >>> torch.allclose(loss, -s.log_softmax(-1)[0, 0])
        True
    """
    target, sampled = _corrected(target_logit, sampled_logit, target_log_count, sampled_log_count, mask)
    logits = torch.cat([target.unsqueeze(-1), sampled], -1)
    return reduce_rows(logits.logsumexp(-1) - target, reduction=reduction)


def nce_loss(
    target_logit: Tensor,
    sampled_logit: Tensor,
    target_log_count: Tensor,
    sampled_log_count: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the loss of noise-contrastive estimation: telling the target from the noise, one class at a time.

    $$\ell = -\log \sigma(s_y - \log m_y) - \sum_j \log \sigma(-(s_j - \log m_j))$$

    Its optimum is $s_c = \log p_c$, normalised by itself, for any number of candidates; its gradient tends to
    that of maximum likelihood as their number grows.

    Args:
        target_logit: (N,), or any leading shape (...).
        sampled_logit: (N, K).
        target_log_count: (N,) log expected count of each row's target: log(k q) of k independent draws.
        sampled_log_count: (K,) or (N, K) log expected count of each candidate.
        mask: (N, K) bool, True where a candidate is left out.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (N,) with `reduction="none"`, in nats; at least float32.

    Raises:
        ValueError: shapes that do not fit, or a target whose expected count is 0 or not finite.

    References:
        Gutmann and Hyvarinen, Noise-contrastive estimation, 2010.
        Mnih and Teh, A fast and simple algorithm for training neural probabilistic language models, 2012.

    Example:
        >>> log_count = torch.tensor([0.25, 0.25]).log()
        >>> loss = nce_loss(log_count[:1], log_count[None], log_count[:1], log_count)  # s = log m everywhere
        >>> torch.allclose(loss, 3 * torch.tensor(2.0).log())
        True
    """
    target, sampled = _corrected(target_logit, sampled_logit, target_log_count, sampled_log_count, mask)
    return reduce_rows(functional.softplus(-target) + functional.softplus(sampled).sum(-1), reduction=reduction)


def negative_sampling_loss(
    target_logit: Tensor, sampled_logit: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""Return the negative-sampling loss of word2vec.

    $$\ell = -\log \sigma(s_y) - \sum_j \log \sigma(-s_j)$$

    Its optimum is $s_c = \log (p_c / m_c)$, the pointwise mutual information less $\log k$ where the candidates
    are k independent draws from the classes' frequencies: not a log-probability.

    Args:
        target_logit: (N,), or any leading shape (...).
        sampled_logit: (N, K).
        mask: (N, K) bool, True where a candidate is left out.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (N,) with `reduction="none"`, in nats; at least float32.

    Raises:
        ValueError: shapes that do not fit.

    References:
        Mikolov et al., Distributed Representations of Words and Phrases and their Compositionality, 2013.
        Levy and Goldberg, Neural Word Embedding as Implicit Matrix Factorization, 2014.

    Example:
        >>> loss = negative_sampling_loss(torch.zeros(1), torch.zeros(1, 2))
        >>> torch.allclose(loss, 3 * torch.tensor(2.0).log())
        True
    """
    zero = torch.zeros((), dtype=torch.float32, device=target_logit.device)
    target, sampled = _corrected(
        target_logit, sampled_logit, zero.expand(target_logit.shape), zero.expand(sampled_logit.shape), mask
    )
    return reduce_rows(functional.softplus(-target) + functional.softplus(sampled).sum(-1), reduction=reduction)


def _corrected(
    target_logit: Tensor,
    sampled_logit: Tensor,
    target_log_count: Tensor,
    sampled_log_count: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Subtract the log counts; a candidate that is left out becomes -inf."""
    rows = target_logit.shape
    if sampled_logit.shape[:-1] != rows or sampled_logit.ndim == 0:
        raise ValueError(f"sampled_logit: expected shape {(*rows, 'K')}, got {tuple(sampled_logit.shape)}")
    if target_log_count.shape != rows:
        raise ValueError(f"target_log_count: expected shape {tuple(rows)}, got {tuple(target_log_count.shape)}")
    if sampled_log_count.shape not in (sampled_logit.shape, sampled_logit.shape[-1:]):
        raise ValueError(
            f"sampled_log_count: expected shape {tuple(sampled_logit.shape[-1:])} or {tuple(sampled_logit.shape)}, "
            f"got {tuple(sampled_log_count.shape)}"
        )
    if mask is not None and mask.shape != sampled_logit.shape:
        raise ValueError(f"mask: expected shape {tuple(sampled_logit.shape)}, got {tuple(mask.shape)}")
    check_finite("target_log_count", target_log_count)
    dtype = torch.promote_types(target_logit.dtype, torch.float32)
    target = target_logit.to(dtype) - target_log_count.to(dtype)
    sampled = sampled_logit.to(dtype) - sampled_log_count.to(dtype)
    return target, sampled if mask is None else sampled.masked_fill(mask, -torch.inf)
