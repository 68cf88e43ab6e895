"""Losses and weights for classes of unequal frequency.

Every loss takes logits (..., V); the class axis is last.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from vastmax.functional.precision import at_least_float32
from vastmax.functional.softmax import check_loss_rows, cross_entropy
from vastmax.reduction import reduce_rows
from vastmax.scoring.focal import focal
from vastmax.validation import (
    check_class_weight,
    check_counts,
    check_finite,
    check_finite_number,
    check_per_class,
    check_target,
)


def log_prior(counts: Tensor | ArrayLike, *, pseudocount: float = 1.0) -> Tensor:
    r"""Return the log of the classes' shares, finite for classes that were never seen.

    $$\log \pi_c = \log \frac{n_c + a}{\sum_j (n_j + a)}$$

    Args:
        counts: (V,) how often each class is seen, at least 0.
        pseudocount: a, greater than 0.

    Returns:
        (V,) float64, in nats.

    Raises:
        TypeError: counts that are not numbers.
        ValueError: counts that are negative, not finite or all 0; a `pseudocount` that is not greater than 0.

    Example:
        >>> log_prior([6, 0], pseudocount=1.0).exp()
        tensor([0.8750, 0.1250], dtype=torch.float64)
    """
    added = check_counts("counts", counts) + check_finite_number("pseudocount", pseudocount, above=0.0)
    return added.log() - added.sum().log()


def inverse_frequency_weight(counts: Tensor | ArrayLike) -> Tensor:
    r"""Return class weights under which every class that is seen weighs the same in all.

    $$v_c = \frac{\sum_j n_j}{V^+ n_c},$$

    with $V^+$ the number of classes seen: the mean weight over the data is 1. A class never seen gets 0: no row
    asks for its weight.

    Args:
        counts: (V,) how often each class is seen, at least 0.

    Returns:
        (V,) float64.

    Raises:
        TypeError: counts that are not numbers.
        ValueError: counts that are negative, not finite or all 0.

    Example:
        >>> inverse_frequency_weight([8, 2, 0])
        tensor([0.6250, 2.5000, 0.0000], dtype=torch.float64)
    """
    return _balanced(check_counts("counts", counts), torch.reciprocal)


def effective_number_weight(counts: Tensor | ArrayLike, *, beta: float = 0.999) -> Tensor:
    r"""Return class weights by the effective number of examples, which grows the slower the more there are.

    $$v_c \propto \frac{1 - \beta}{1 - \beta^{n_c}},$$

    scaled to a mean of 1 over the data. Equal weights at $\beta = 0$, inverse frequency in the limit of 1.
    A class never seen gets 0.

    Args:
        counts: (V,) how often each class is seen, at least 0.
        beta: in [0, 1).

    Returns:
        (V,) float64.

    Raises:
        TypeError: counts that are not numbers.
        ValueError: counts that are negative, not finite or all 0; `beta` outside [0, 1).

    References:
        Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019.

    Example:
        >>> effective_number_weight([8, 2, 0], beta=0.0)
        tensor([1., 1., 0.], dtype=torch.float64)
    """
    log_beta = torch.tensor(check_finite_number("beta", beta, at_least=0.0, below=1.0), dtype=torch.float64).log()
    return _balanced(check_counts("counts", counts), lambda n: torch.expm1(log_beta) / torch.expm1(n * log_beta))


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the multi-class focal loss: a row whose class is probable already counts less.

    $$\ell = -\alpha_y (1 - p_y)^\gamma \log p_y, \qquad p = \text{softmax}(s)$$

    The cross-entropy at $\gamma = 0$. The mean divides by the sum of the targets' alpha, as torch's cross-entropy
    does by that of its weights.

    Args:
        logits: (..., V), floating; -inf masks a class.
        target: (...) int64 class ids.
        gamma: at least 0; the gradient is finite up to p = 1 for all of them.
        alpha: (V,) weight per class, at least 0; 1 if omitted.
        sample_weight: (...) weight per row; the mean divides by their sum.
        ignore_index: rows with this target take no part; None for no such id.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (...) with `reduction="none"`, in nats; at least float32.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, a target out of range, a negative `gamma`, a weight that is negative or
            not finite.

    References:
        Lin et al., Focal Loss for Dense Object Detection, 2017.

    Example:
        >>> logits, target = torch.tensor([[0.0, 0.0]]), torch.tensor([0])
        >>> focal_loss(logits, target, gamma=2.0) / focal_loss(logits, target, gamma=0.0)
        tensor(0.2500)
    """
    gamma = check_finite_number("gamma", gamma, at_least=0.0)
    check_loss_rows(logits, sample_weight)
    ignored = check_target(target, logits.shape[:-1], logits.shape[-1], ignore_index)
    check_class_weight("alpha", alpha, logits.shape[-1])
    label = target.masked_fill(ignored, 0)
    log_p = functional.log_softmax(at_least_float32(logits), -1).gather(-1, label.unsqueeze(-1)).squeeze(-1)
    loss, mass = focal(log_p, gamma), None
    if alpha is not None:
        mass = alpha.to(loss.dtype)[label]
        loss = mass * loss
    return reduce_rows(loss, reduction=reduction, weight=sample_weight, mass=mass, ignored=ignored)


def logit_adjusted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    log_prior: Tensor,
    *,
    tau: float = 1.0,
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the cross-entropy of logits to which the classes' log-prior is added.

    $$\ell = -\log \text{softmax}(s + \tau \log \pi)_y$$

    Trained with it, s itself, without the prior, is what predicts all classes equally well: at $\tau = 1$ the
    optimum of $\text{softmax}(s)$ is $p(y \mid x) / \pi_y$, normalised (the balanced softmax). After plain training
    the same is had by predicting with $s - \tau \log \pi$.

    Args:
        logits: (..., V), floating; -inf masks a class.
        target: (...) int64 class ids, or (..., V) probabilities.
        log_prior: (V,) finite, in nats; `functional.log_prior(counts)`.
        tau: strength.
        sample_weight: (...) weight per row; the mean divides by their sum.
        ignore_index: rows with this target take no part; None for no such id.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (...) with `reduction="none"`, in nats; at least float32.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, a target out of range, a prior that is not finite, a weight that is
            negative or not finite.

    References:
        Menon et al., Long-tail Learning via Logit Adjustment, 2021.
        Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, 2020.

    Example:
        >>> prior = torch.tensor([0.75, 0.25])
        >>> logit_adjusted_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), prior.log()).neg().exp()
        tensor(0.7500)
    """
    check_loss_rows(logits, sample_weight)
    if log_prior is None:
        raise TypeError(f"log_prior: expected a floating-point tensor ({logits.shape[-1]},), got None")
    check_per_class("log_prior", log_prior, logits.shape[-1])
    check_finite("log_prior", log_prior)
    tau = check_finite_number("tau", tau)
    wide = at_least_float32(logits)
    adjusted = wide + tau * log_prior.to(wide.dtype)
    return cross_entropy(
        adjusted, target, sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction
    )


def _balanced(counts: Tensor, weight: Callable[[Tensor], Tensor]) -> Tensor:
    """Weights of the classes seen, scaled so that those of the data have mean 1."""
    seen = counts > 0
    found = torch.zeros_like(counts)
    found[seen] = weight(counts[seen])
    return found * counts.sum() / (found * counts).sum()
