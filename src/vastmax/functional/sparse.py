r"""Losses whose gradient is the difference between a sparse mapping's probabilities and the target.

A Fenchel-Young loss is made of the conjugate of a negative entropy, $\Omega = -H_\alpha$:

$$L(s, t) = \Omega^*(s) + \Omega(t) - \langle s, t \rangle, \qquad
  \Omega^*(s) = \max_{p \in \Delta} \langle p, s \rangle + H_\alpha(p), \qquad
  H_\alpha(p) = \frac{1}{\alpha (\alpha - 1)} \sum_c (p_c - p_c^\alpha)$$

The maximum is at $p = \text{entmax}_\alpha(s)$, so the gradient is $p - t$. At $\alpha = 1$ this is cross-entropy
less the entropy of the target.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from vastmax.compilation import uncompiled
from vastmax.differentiation import along, takes_operators
from vastmax.functional.entmax import entmax, entmax_order
from vastmax.functional.precision import at_least_float32
from vastmax.functional.softmax import check_loss_rows, holds_probabilities
from vastmax.kernels import implementation, reference
from vastmax.reduction import reduce_rows
from vastmax.scoring.top import topk_by_id
from vastmax.validation import check_distribution, check_k, check_target


def topk_softmax_loss(
    logits: Tensor,
    target: Tensor,
    k: int,
    *,
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the cross-entropy of the target among k classes: itself and the k - 1 largest of the others.

    $$\ell = \log \sum_{c \in T} e^{s_c} - s_y, \qquad
      T = \{y\} \cup \text{the } k - 1 \text{ largest of } (s_c)_{c \ne y}$$

    Where the target is among the k largest, of equals those of the lowest ids, this is $-\log$ of its
    `topk_softmax`; elsewhere it takes the place of the k-th, so that the loss is finite and pulls it in. k = V is
    the cross-entropy.

    Args:
        logits: (..., V), floating; -inf masks a class.
        target: (...) int64 class ids.
        k: classes compared, from 2 to V; 1 only where V is 1.
        sample_weight: (...) weight per row; the mean divides by their sum.
        ignore_index: rows with this class id take no part; None for no such id.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (...) with `reduction="none"`, in nats and at least 0; at least float32.

    Raises:
        TypeError: a tensor of the wrong dtype, k not an integer.
        ValueError: shapes that do not fit, a class id or k out of range, a weight that is negative or not finite.

    Example:
        >>> topk_softmax_loss(torch.tensor([3.0, 1.0, 2.0]), torch.tensor(1), 2)  # log(1 + e^2)
        tensor(2.1269)
    """
    check_loss_rows(logits, sample_weight)
    k = check_loss_k(k, logits.shape[-1])
    label, ignored = _label(logits, target, ignore_index)
    largest, indices = topk_by_id(at_least_float32(logits), k)
    # The loss does not change if a number is added to all logits of a row: this one keeps them accurate.
    shift = largest[..., :1].detach()
    target_logit = at_least_float32(logits).gather(-1, label) - shift
    largest = largest - shift
    last = torch.where((indices == label).any(-1, keepdim=True), largest[..., -1:], target_logit)
    compared = torch.cat([largest[..., :-1], last], -1)
    loss = compared.logsumexp(-1) - target_logit.squeeze(-1)
    return reduce_rows(loss, reduction=reduction, weight=sample_weight, ignored=ignored)


def sparsemax_loss(
    logits: Tensor,
    target: Tensor,
    *,
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the Fenchel-Young loss of `sparsemax`: `entmax_loss` with $\alpha = 2$.

    $$\ell = \tfrac12 \|s - t\|^2 - \tfrac12 \|s - \text{sparsemax}(s)\|^2$$

    It is 0 once the target's logit is 1 above every other.

    Args:
        logits: (..., V), floating; -inf masks a class.
        target: (...) int64 class ids, or (..., V) probabilities.
        sample_weight: (...) weight per row; the mean divides by their sum.
        ignore_index: rows with this class id take no part; None for no such id.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (...) with `reduction="none"`, at least 0; at least float32.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, a class id out of range, targets that are not probabilities, a weight
            that is negative or not finite.

    References:
        Martins and Astudillo, From Softmax to Sparsemax, 2016.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, -9.0]])
        >>> sparsemax_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.0000, 0.2500])
    """
    return entmax_loss(
        logits, target, 2.0, sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction
    )


def entmax15_loss(
    logits: Tensor,
    target: Tensor,
    *,
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the Fenchel-Young loss of `entmax15`: `entmax_loss` with $\alpha = 1.5$.

    It is 0 once the target's logit is 2 above every other.

    Args:
        logits: (..., V), floating; -inf masks a class.
        target: (...) int64 class ids, or (..., V) probabilities.
        sample_weight: (...) weight per row; the mean divides by their sum.
        ignore_index: rows with this class id take no part; None for no such id.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (...) with `reduction="none"`, at least 0; at least float32.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, a class id out of range, targets that are not probabilities, a weight
            that is negative or not finite.

    References:
        Peters, Niculae and Martins, Sparse Sequence-to-Sequence Models, 2019.

    Example:
        >>> entmax15_loss(torch.tensor([2.0, 0.0, 0.0]), torch.tensor(0))
        tensor(0.)
    """
    return entmax_loss(
        logits, target, 1.5, sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction
    )


def entmax_loss(
    logits: Tensor,
    target: Tensor,
    alpha: float | Tensor,
    *,
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the Fenchel-Young loss of `entmax`, whose gradient is `entmax(logits, alpha)` less the target.

    $$\ell = \max_{p \in \Delta} \left[ \langle p, s \rangle + H_\alpha(p) \right]
      - \langle t, s \rangle - H_\alpha(t)$$

    It is at least 0, and 0 where entmax is the target. The target's $H_\alpha$ is 0 for a class id; $\alpha = 1$
    gives cross-entropy for class ids, and `kl_divergence` for probabilities.

    Args:
        logits: (..., V), floating; -inf masks a class.
        target: (...) int64 class ids, or (..., V) probabilities.
        alpha: 1 or greater: a number, or a tensor that broadcasts to (..., 1); its gradient is that of the loss.
        sample_weight: (...) weight per row; the mean divides by their sum.
        ignore_index: rows with this class id take no part; None for no such id.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (...) with `reduction="none"`; at least float32.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: alpha below 1, shapes that do not fit, a class id out of range, targets that are not
            probabilities, a weight that is negative or not finite.

    References:
        Blondel, Martins and Niculae, Learning with Fenchel-Young Losses, 2020.

    Example:
        >>> logits = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
        >>> entmax_loss(logits, torch.tensor(0), 1.5).backward()
        >>> torch.equal(logits.grad, entmax(logits, 1.5).detach() - torch.tensor([1.0, 0.0, 0.0]))
        True
    """
    check_loss_rows(logits, sample_weight)
    logits = at_least_float32(logits)
    order = entmax_order(alpha, logits, -1)
    if not holds_probabilities(target):
        label, ignored = _label(logits, target, ignore_index)
        loss = _above_target(logits, alpha, order, label)
    else:
        check_distribution("target", target, logits.shape)
        ignored, probability = None, target.to(logits.dtype)
        # The loss does not change if a number is added to all logits of a row: this one keeps them accurate.
        below = logits - logits.detach().amax(-1, keepdim=True)
        expected = (probability * below.masked_fill(probability == 0, 0.0)).sum(-1)
        entropy = reference.tsallis_entropy(probability.reshape(-1, logits.shape[-1]), order).view_as(expected)
        loss = _above_target(below, alpha, order, None) - entropy - expected
    return reduce_rows(loss, reduction=reduction, weight=sample_weight, ignored=ignored)


@uncompiled
def _above_target(logits: Tensor, alpha: float | Tensor, order: Tensor, label: Tensor | None) -> Tensor:
    r"""$\Omega^*(s)$ above the logits of class ids (..., 1), or above the largest logits."""
    probability = entmax(logits, alpha)
    rows, classes = logits.shape[:-1], logits.shape[-1]
    found: Tensor = _AboveTarget.apply(  # type: ignore[no-untyped-call]
        logits.reshape(-1, classes),
        probability.reshape(-1, classes),
        order,
        None if label is None else label.reshape(-1, 1),
    )
    return found.view(rows)


class _AboveTarget(torch.autograd.Function):
    r"""$\Omega^*(s) = \langle p, s \rangle + H_\alpha(p)$ at its maximum p, above one logit of each row (N, V).

    At the maximum a change of p changes nothing, so p gets no gradient; it is the gradient of the logits, and takes
    part in that gradient's own.
    """

    @staticmethod
    def forward(logits: Tensor, probability: Tensor, order: Tensor, label: Tensor | None) -> Tensor:
        above: Tensor = implementation("entmax_conjugate", logits, probability, order)(logits, probability, order)
        if label is None:
            return above
        return above + (logits.amax(-1) - logits.gather(-1, label).squeeze(-1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        probability, order, label = ctx.saved_tensors
        upstream = upstream.unsqueeze(-1)
        grad_logits = upstream * probability
        if label is not None:
            grad_logits.scatter_add_(-1, label, -upstream)
        grad_order = None
        if ctx.needs_input_grad[2]:
            # What has a derivative itself is made of torch's operators.
            slope = (
                reference.tsallis_entropy_slope
                if takes_operators(upstream)
                else implementation("tsallis_entropy_slope", probability, order)
            )
            rows = upstream * slope(probability, order).unsqueeze(-1)
            grad_order = rows.sum_to_size(order.shape).to(order.dtype)
        return grad_logits, None, grad_order, None

    @staticmethod
    @along
    def jvp(
        ctx: Any, saved: tuple[Tensor, Tensor, Tensor | None], logits: Tensor, _: Tensor, order: Tensor, __: None
    ) -> Tensor:
        probability, at_order, label = saved
        direction = (probability * logits).sum(-1)
        if label is not None:
            direction = direction - logits.gather(-1, label).squeeze(-1)
        slope: Tensor = reference.tsallis_entropy_slope(probability, at_order)
        return direction + slope * order.squeeze(-1)

    @staticmethod
    def vmap(*_: Any) -> NoReturn:
        """Never come to: torch asks for it where directions are batched; numbers that are have been refused."""
        raise NotImplementedError("entmax_loss: expected one tensor of logits, got a batch of torch.func.vmap's")


def _label(logits: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Return class ids (..., 1) to gather with, and which rows are ignored."""
    ignored = check_target(target, logits.shape[:-1], logits.shape[-1], ignore_index)
    return target.masked_fill(ignored, 0).unsqueeze(-1), ignored


def check_loss_k(k: int, num_classes: int) -> int:
    """Return k if the loss can compare k of the classes."""
    k = check_k(k, num_classes)
    if k == 1 < num_classes:
        raise ValueError("k: expected at least 2, got 1: a target alone has nothing to be compared with")
    return k
