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

from vastmax.functional.candidates import (
    beside_target,
    check_candidates,
    check_target_log_count,
    corrected,
    log_mass,
    log_partition_estimate,
    log_ratio,
    uncorrected,
)
from vastmax.functional.precision import at_least_float32
from vastmax.reduction import reduce_rows
from vastmax.validation import check_finite_number, check_positive_int, check_share


def sampled_softmax_loss(
    target_logit: Tensor,
    sampled_logit: Tensor,
    target_log_count: Tensor,
    sampled_log_count: Tensor,
    *,
    mask: Tensor | None = None,
    target_mask: Tensor | None = None,
    label_smoothing: float = 0.0,
    num_classes: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the cross-entropy of the target among itself and the candidates, logits corrected by log counts.

    $$\ell = -(1 - \epsilon) \log \frac{e^{s_y - \log m_y}}{e^{s_y - \log m_y} + \sum_j e^{s_j - \log m_j}}
      - \frac \epsilon V \sum_j \frac 1 {m_j} \log \frac{e^{s_j - \log m_j}}{\sum_i e^{s_i - \log m_i}}$$

    The correction makes the optimum of $s$ the log-probability of the data up to a constant of the row, for any
    number of candidates. A constant in the log counts cancels. This is also the ranking form of noise-contrastive
    estimation.

    With label smoothing $\epsilon$ each candidate is a target, too, of a softmax over the candidates. Weighted by
    expected counts this is, without bias, the mean of the losses of all V classes: the expected loss is that of a
    target from $(1 - \epsilon) p + \epsilon / V$, and its optimum is that distribution. For that all targets need
    as many rivals: let `target_mask` leave out an accidental hit among distinct classes, and any one of independent
    draws.

    Args:
        target_logit: (N,), or any leading shape (...).
        sampled_logit: (N, K).
        target_log_count: (N,) log expected count of each row's target.
        sampled_log_count: (K,) or (N, K) log expected count of each candidate.
        mask: (N, K) bool, True where a candidate is left out.
        target_mask: (N, K) bool, True where one is left out beside the target alone, which with label smoothing is
            something else.
        label_smoothing: $\epsilon$, from 0 to 1: share of the target's mass spread evenly over the classes, but for
            those that are never drawn, or masked by a logit of -inf.
        num_classes: V, which label smoothing needs.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (N,) with `reduction="none"`, in nats; at least float32.

    Raises:
        TypeError, ValueError: shapes that do not fit, a target whose expected count is 0 or not finite, a
            `label_smoothing` out of range or without `num_classes`.

    References:
        Jean, Cho, Memisevic and Bengio, On Using Very Large Target Vocabulary for Neural Machine Translation, 2015.
        Ma and Collins, Noise Contrastive Estimation and Negative Sampling for Conditional Models, 2018.

    Example:
        >>> s = torch.tensor([[2.0, 1.0, 0.0]])  # candidates: the two classes that are not the target
        >>> loss = sampled_softmax_loss(s[:, 0], s[:, 1:], torch.zeros(1), torch.zeros(2))
        >>> torch.allclose(loss, -s.log_softmax(-1)[0, 0])
        True
    """
    target, sampled = beside_target(target_logit, sampled_logit)
    check_target_log_count(target_log_count, target)
    no_rival = mask if target_mask is None else target_mask if mask is None else mask | target_mask
    others = log_partition_estimate(sampled, sampled_log_count, mask=no_rival)
    log_odds = target - target_log_count.to(target.dtype) - others
    loss = -functional.logsigmoid(log_odds)
    if (smoothing := check_share("label_smoothing", label_smoothing)) > 0.0:
        if num_classes is None:
            raise ValueError(f"num_classes: expected V beside label_smoothing={smoothing:g}, got None")
        num_classes = check_positive_int("num_classes", num_classes)
        mean = mean_class_loss(sampled_logit, sampled_log_count, num_classes, mask=mask)
        loss = (1 - smoothing) * loss + smoothing * mean
    return reduce_rows(loss, reduction=reduction)


def mean_class_loss(
    sampled_logit: Tensor,
    sampled_log_count: Tensor,
    num_classes: int,
    *,
    class_weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return an estimate (N,) of the mean over all classes of their losses among the candidates.

    $$-\frac 1 V \sum_j \frac {v_j} {m_j} \log \frac{e^{s_j - \log m_j}}{\sum_i e^{s_i - \log m_i}}$$

    Its expectation is that of $\frac 1 V \sum_c v_c \ell_c$, where $\ell_c$ is the loss of a target c beside one
    of independent draws less, or beside the others of a set of distinct classes. Every term is at least 0.

    Args:
        sampled_logit: (N, K).
        sampled_log_count: (K,) or (N, K).
        num_classes: V.
        class_weight: (K,) or (N, K) v, of the candidates' classes; 1 if omitted.
        mask: (N, K) bool, True where a candidate is left out.
    """
    check_candidates("sampled_log_count", sampled_log_count, sampled_logit)
    sampled = at_least_float32(sampled_logit)
    if sampled.shape[-1] == 0:
        return sampled.sum(-1)
    largest = sampled.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(sampled.dtype).min)
    terms = log_ratio(sampled - largest, sampled_log_count, mask)
    share = sampled_log_count.neg().exp().to(terms.dtype) / num_classes
    if class_weight is not None:
        share = share * class_weight.to(terms.dtype)
    share = share.where(terms > -torch.inf, 0.0)  # not of what is left out, nor of a masked class
    behind = log_mass(terms).unsqueeze(-1) - terms
    return (share * behind.masked_fill(share == 0, 0.0)).sum(-1)


def nce_loss(
    target_logit: Tensor,
    sampled_logit: Tensor,
    target_log_count: Tensor,
    sampled_log_count: Tensor,
    *,
    sampled_log_weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the loss of noise-contrastive estimation: telling the target from the noise, one class at a time.

    $$\ell = -\log \sigma(s_y - \log m_y) - \sum_j w_j \log \sigma(-(s_j - \log m_j))$$

    Its optimum is $s_c = \log p_c$, normalised by itself, for any number of candidates; its gradient tends to
    that of maximum likelihood as their number grows. The weights are 1, or where the candidates come from another
    distribution than the noise that they stand for, importance weights: expected count under the noise over
    expected count as drawn.

    Args:
        target_logit: (N,), or any leading shape (...).
        sampled_logit: (N, K).
        target_log_count: (N,) log expected count of each row's target: log(k q) of k independent draws.
        sampled_log_count: (K,) or (N, K) log expected count of each candidate under the noise.
        sampled_log_weight: (K,) or (N, K) log of the weight of each candidate; 0 if omitted.
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
    target, sampled = corrected(target_logit, sampled_logit, target_log_count, sampled_log_count, mask)
    noise = functional.softplus(sampled)
    if sampled_log_weight is not None:
        check_candidates("sampled_log_weight", sampled_log_weight, sampled_logit)
        noise = noise * sampled_log_weight.to(noise.dtype).exp()
    return reduce_rows(functional.softplus(-target) + noise.sum(-1), reduction=reduction)


def negative_sampling_loss(
    target_logit: Tensor,
    sampled_logit: Tensor,
    *,
    positive_weight: float = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the negative-sampling loss of word2vec.

    $$\ell = -\beta \log \sigma(s_y) - \sum_j \log \sigma(-s_j)$$

    Its optimum is $s_c = \log (\beta p_c / m_c)$: with $\beta = 1$ and k independent draws from the classes'
    frequencies, the pointwise mutual information less $\log k$. Not a log-probability.

    Args:
        target_logit: (N,), or any leading shape (...).
        sampled_logit: (N, K).
        positive_weight: $\beta$, greater than 0; other than 1 in generalised binary cross-entropy (gBCE).
        mask: (N, K) bool, True where a candidate is left out.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (N,) with `reduction="none"`, in nats; at least float32.

    Raises:
        ValueError: shapes that do not fit, or a `positive_weight` that is not greater than 0.

    References:
        Mikolov et al., Distributed Representations of Words and Phrases and their Compositionality, 2013.
        Levy and Goldberg, Neural Word Embedding as Implicit Matrix Factorization, 2014.
        Petrov and Macdonald, gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
        Sampling, 2023.

    Example:
        >>> loss = negative_sampling_loss(torch.zeros(1), torch.zeros(1, 2))
        >>> torch.allclose(loss, 3 * torch.tensor(2.0).log())
        True
    """
    positive_weight = check_finite_number("positive_weight", positive_weight, above=0.0)
    target, sampled = uncorrected(target_logit, sampled_logit, mask)
    positive = positive_weight * functional.softplus(-target)
    return reduce_rows(positive + functional.softplus(sampled).sum(-1), reduction=reduction)


def one_vs_each_loss(
    target_logit: Tensor,
    sampled_logit: Tensor,
    *,
    sampled_log_count: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the one-vs-each loss: an upper bound on the cross-entropy, a sum over pairs of classes.

    $$\ell = \sum_j \frac 1 {m_j} \log \left(1 + e^{s_j - s_y}\right)$$

    With every class but the target as candidates, each counting 1, it is at least $-\log p_y$, with equality for
    two classes. With the expected counts of sampled candidates, hits left out by `mask`, it is an estimate of
    that sum without bias: k uniform ones of the V - 1 count (V - 1) / k each.

    Args:
        target_logit: (N,), or any leading shape (...).
        sampled_logit: (N, K).
        sampled_log_count: (K,) or (N, K) log expected count of each candidate; 0 if omitted.
        mask: (N, K) bool, True where a candidate is left out, as one equal to the target must be.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (N,) with `reduction="none"`, in nats; at least float32.

    Raises:
        ValueError: shapes that do not fit.

    References:
        Titsias, One-vs-Each Approximation to Softmax for Scalable Estimation of Probabilities, 2016.

    Example:
        >>> s = torch.tensor([[2.0, 1.0]])
        >>> torch.allclose(one_vs_each_loss(s[:, 0], s[:, 1:]), -s.log_softmax(-1)[0, 0])
        True
    """
    target, sampled = uncorrected(target_logit, sampled_logit, mask)
    pairs = functional.softplus(sampled - target.unsqueeze(-1))
    if sampled_log_count is not None:
        check_candidates("sampled_log_count", sampled_log_count, sampled_logit)
        pairs = pairs * sampled_log_count.neg().to(pairs.dtype).exp()
    return reduce_rows(pairs.sum(-1), reduction=reduction)


def importance_sampled_softmax_loss(
    target_logit: Tensor,
    sampled_logit: Tensor,
    sampled_log_count: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the cross-entropy with the log-partition estimated from the candidates alone.

    $$\ell = -s_y + \log \sum_j e^{s_j - \log m_j}$$

    Its gradient weighs the candidates by $w_j = e^{s_j} / m_j$, normalised: self-normalised importance sampling,
    whose bias falls as 1 / k. The target is not corrected, and accidental hits stay. A row without candidates has
    no estimate and counts for nothing.

    Args:
        target_logit: (N,), or any leading shape (...).
        sampled_logit: (N, K).
        sampled_log_count: (K,) or (N, K) log expected count of each candidate.
        mask: (N, K) bool, True where a candidate is left out.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (N,) with `reduction="none"`, in nats; at least float32.

    Raises:
        ValueError: shapes that do not fit.

    References:
        Bengio and Senecal, Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language
        Model, 2008.

    Example:
        >>> s = torch.tensor([[2.0, 1.0, 0.0]])  # every class a candidate once, so the exact cross-entropy
        >>> torch.allclose(importance_sampled_softmax_loss(s[:, 0], s, torch.zeros(3)), -s.log_softmax(-1)[0, 0])
        True
    """
    target, sampled = beside_target(target_logit, sampled_logit)
    log_partition = log_partition_estimate(sampled, sampled_log_count, mask=mask)
    without = log_partition.isneginf()
    loss = log_partition.masked_fill(without, 0.0) - target
    return reduce_rows(loss, reduction=reduction, ignored=without)
