"""The softmax and the measures of information between the distributions it makes.

Every function takes logits; the class axis is last unless `dim` says otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vastmax import checking
from vastmax.differentiation import check_not_batched
from vastmax.functional.precision import at_least_float32
from vastmax.reduction import check_sample_weight, reduce_rows
from vastmax.validation import check_all, check_distribution, check_target, shown


def hardmax(logits: Tensor, dim: int = -1) -> Tensor:
    r"""Return the one-hot vector of the largest logit: the limit of `softmax(logits / T)` as T falls to 0.

    $$\text{hardmax}(s)_c = [c = \arg\max_j s_j]$$

    Of equal logits one is chosen, as `torch.argmax` does.

    Args:
        logits: (..., V), floating.
        dim: the class axis.

    Raises:
        TypeError: logits that are not floating.
        ValueError: no such axis, or a row without a finite largest logit.

    Example:
        >>> hardmax(torch.tensor([1.0, 3.0, 2.0]))
        tensor([0., 1., 0.])
    """
    check_logits(logits, dim)
    return torch.zeros_like(logits).scatter_(dim, logits.argmax(dim, keepdim=True), 1.0)


def softmax(logits: Tensor, dim: int = -1) -> Tensor:
    r"""Return the softmax of logits, computed in at least float32.

    $$\text{softmax}(s)_c = \frac{e^{s_c}}{\sum_j e^{s_j}}$$

    A logit of -inf masks its class.

    Args:
        logits: (..., V), floating.
        dim: the class axis.

    Returns:
        Probabilities in the shape and dtype of `logits`.

    Raises:
        TypeError: logits that are not floating.
        ValueError: no such axis, a row that holds NaN or +inf, or in which every class is masked.

    Example:
        >>> softmax(torch.tensor([1.0, 2.0, 3.0]))
        tensor([0.0900, 0.2447, 0.6652])
    """
    check_logits(logits, dim)
    return functional.softmax(at_least_float32(logits), dim).to(logits.dtype)


def log_softmax(logits: Tensor, dim: int = -1) -> Tensor:
    r"""Return the logarithm of the softmax, computed in at least float32.

    $$\log\text{softmax}(s)_c = s_c - \log \sum_j e^{s_j}$$

    Args:
        logits: (..., V), floating; -inf masks a class.
        dim: the class axis.

    Returns:
        Log-probabilities in nats, in the shape and dtype of `logits`.

    Raises:
        TypeError: logits that are not floating.
        ValueError: no such axis, a row that holds NaN or +inf, or in which every class is masked.

    Example:
        >>> log_softmax(torch.tensor([0.0, 0.0]))
        tensor([-0.6931, -0.6931])
    """
    check_logits(logits, dim)
    return functional.log_softmax(at_least_float32(logits), dim).to(logits.dtype)


def entropy(logits: Tensor, dim: int = -1) -> Tensor:
    r"""Return the entropy of the softmax of each row.

    $$H(p) = -\sum_c p_c \log p_c, \qquad p = \text{softmax}(s)$$

    Args:
        logits: (..., V), floating; -inf masks a class.
        dim: the class axis.

    Returns:
        (...) in nats, between 0 and log V; at least float32.

    Raises:
        TypeError: logits that are not floating.
        ValueError: no such axis, a row that holds NaN or +inf, or in which every class is masked.

    Example:
        >>> entropy(torch.zeros(8)).exp()
        tensor(8.0000)
    """
    check_logits(logits, dim)
    log_p = functional.log_softmax(at_least_float32(logits), dim)
    return -_expectation(log_p.exp(), log_p, dim)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the cross-entropy of targets with the softmax of each row.

    $$H(t, p) = -\sum_c t_c \log p_c = H(t) + \text{KL}(t \,\|\, p), \qquad p = \text{softmax}(s)$$

    Args:
        logits: (..., V), floating; -inf masks a class.
        target: (...) int64 class ids, or (..., V) probabilities.
        sample_weight: (...) weight per row; the mean divides by their sum.
        ignore_index: rows with this class id take no part; None for no such id.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (...) with `reduction="none"`, in nats; at least float32.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, a class id out of range, targets that are not probabilities, a weight
            that is negative or not finite.

    Example:
        >>> log_q = torch.tensor([0.3, 0.4, 0.3]).log()
        >>> cross_entropy(log_q, torch.tensor([0.0, 1.0, 0.0]))
        tensor(0.9163)
    """
    check_loss_rows(logits, sample_weight)
    ignored = None
    if not holds_probabilities(target):
        ignored = check_target(target, logits.shape[:-1], logits.shape[-1], ignore_index)
        log_p = functional.log_softmax(at_least_float32(logits), -1)
        label = target.masked_fill(ignored, 0).unsqueeze(-1)
        loss = -log_p.gather(-1, label).squeeze(-1)
    else:
        log_p, probabilities = _log_softmax_and_target(logits, target)
        loss = -_expectation(probabilities, log_p, -1)
    return reduce_rows(loss, reduction=reduction, weight=sample_weight, ignored=ignored)


def kl_divergence(
    logits: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""Return the Kullback-Leibler divergence from target probabilities to the softmax of each row.

    $$\text{KL}(t \,\|\, p) = \sum_c t_c \log \frac{t_c}{p_c}, \qquad p = \text{softmax}(s)$$

    Args:
        logits: (..., V), floating; -inf masks a class.
        target: (..., V) probabilities; 0 log 0 is 0.
        sample_weight: (...) weight per row; the mean divides by their sum.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (...) with `reduction="none"`, in nats; at least float32.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, targets that are not probabilities, a weight that is negative or not
            finite.

    Example:
        >>> p = torch.tensor([0.2, 0.3, 0.5])
        >>> bool(kl_divergence(p.log(), p) < 1e-6)
        True
    """
    check_loss_rows(logits, sample_weight)
    if not holds_probabilities(target):
        raise TypeError(f"target: expected floating-point probabilities, got dtype {target.dtype}")
    log_p, probabilities = _log_softmax_and_target(logits, target)
    loss = torch.xlogy(probabilities, probabilities).sum(-1) - _expectation(probabilities, log_p, -1)
    return reduce_rows(loss, reduction=reduction, weight=sample_weight)


def check_logits(logits: Tensor, dim: int) -> None:
    """Raise unless `logits` is floating, `dim` one of its axes, and every row has a finite largest logit."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits: expected a floating-point tensor, got {kind}")
    if logits.ndim > 0 and not -logits.ndim <= dim < logits.ndim:
        raise ValueError(f"dim: expected an axis of logits of shape {tuple(logits.shape)}, got {shown(dim)}")
    if logits.ndim == 0 or logits.shape[dim] == 0:
        raise ValueError(f"logits: expected at least one class on axis {dim}, got shape {tuple(logits.shape)}")
    check_not_batched("logits", logits)
    if not checking.are_off():
        largest = logits.detach().amax(dim)
        check_all("logits", "a finite largest logit in every row", largest, largest.isfinite())


def check_loss_rows(logits: Tensor, sample_weight: Tensor | None) -> None:
    """Raise unless `logits` is fit for a loss of its rows and `sample_weight`, if given, has a weight for each."""
    check_logits(logits, -1)
    if sample_weight is not None:
        check_sample_weight(sample_weight, logits.shape[:-1])


def holds_probabilities(target: Tensor) -> bool:
    """Whether the target is probabilities (True) or class ids (False); raise TypeError if it is no tensor."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target: expected a tensor of class ids or of probabilities, got {type(target).__name__}")
    return target.is_floating_point()


def _log_softmax_and_target(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    check_distribution("target", target, logits.shape)
    log_p = functional.log_softmax(at_least_float32(logits), -1)
    return log_p, target.to(log_p.dtype)


def _expectation(probability: Tensor, value: Tensor, dim: int) -> Tensor:
    """Sum of probability times value, where a class of probability 0 counts for nothing whatever its value."""
    return (probability * value.masked_fill(probability == 0, 0.0)).sum(dim)
