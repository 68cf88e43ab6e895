"""Losses on the logits of chosen classes whose gradient is made on the way: each class row is read once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.arithmetic import without_autocast
from vastmax.fused import Shapes, differentiable_by, keep, kept
from vastmax.kernels import implementation
from vastmax.scoring import plain as torchs
from vastmax.scoring.class_gradients import (
    ChosenSet,
    OfChosen,
    arithmetic,
    class_gradients,
    class_rows,
    gather_dot,
    hidden_gradient,
)


class _OwnClasses(OfChosen):
    """A kernel's loss of rows with classes of their own (N, K), of which it takes one to three numbers each."""

    arguments = (
        "Tensor hidden, Tensor weight, Tensor? bias, str kernel, Tensor ids, float scale, bool sparse, "
        "Tensor[] numbers"
    )

    @staticmethod
    def shapes(
        wanted: list[int], hidden: Tensor, weight: Tensor, bias: Tensor | None, _: str, ids: Tensor, *__: Any
    ) -> Shapes:
        like = functools.partial(hidden.new_empty, dtype=arithmetic(hidden, weight))
        return [like(hidden.shape[0])], [like(ids.shape), like(hidden.shape)]

    @staticmethod
    def plain(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel: str,
        ids: Tensor,
        scale: float,
        sparse: bool,
        *numbers: Tensor,
    ) -> Tensor:
        logits = torchs.chosen_logits(hidden, weight, bias, ids)
        numbers = tuple(x.to(logits.dtype) if x.is_floating_point() else x for x in numbers)
        loss: Tensor = _LOSS_OF_LOGITS[kernel](logits, *numbers, scale)
        return loss

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel: str,
        ids: Tensor,
        scale: float,
        sparse: bool,
        *numbers: Tensor,
    ) -> Tensor:
        with without_autocast(hidden.device):
            rows = hidden.to(arithmetic(hidden, weight))
            numbers = tuple(x.to(rows.dtype) if x.is_floating_point() else x for x in numbers)
            loss_of = implementation(kernel, rows, weight, bias)
            loss, slope, grad_hidden = loss_of(rows, weight, bias, ids, *numbers, scale)
        keep(ctx, (hidden, weight, bias, kernel, ids, scale, sparse, *numbers), slope, grad_hidden)
        return loss  # type: ignore[no-any-return]

    @staticmethod
    @differentiable_by(plain)
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (hidden, weight, bias, _, ids, _, sparse, *numbers), (slope, grad_hidden) = kept(ctx)
        upstream = upstream.unsqueeze(-1)
        with without_autocast(hidden.device):
            chosen, rows, wanted = [ChosenSet(ids, slope)], hidden.to(slope.dtype), ctx.needs_input_grad[1:3]
            of_classes = class_gradients(rows, weight, bias, chosen, upstream, sparse=sparse, wanted=wanted)
        return (grad_hidden * upstream).to(hidden.dtype), *of_classes, *(None,) * (4 + len(numbers))


class _SharedClasses(OfChosen):
    """A kernel's loss of rows on their target and on classes (K,) that all of them share.

    The kernel makes it of the target's logit and the others', with its slope in the target's, and leaves its slopes
    in the others' in their place.
    """

    arguments = (
        "Tensor hidden, Tensor weight, Tensor? bias, str kernel, Tensor target, Tensor ids, Tensor target_offset, "
        "Tensor offset, bool without_hits, float positive_weight, float scale, bool sparse"
    )

    @staticmethod
    def shapes(
        wanted: list[int],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel: str,
        target: Tensor,
        ids: Tensor,
        *_: Any,
    ) -> Shapes:
        like = functools.partial(hidden.new_empty, dtype=arithmetic(hidden, weight))
        num_rows, num_ids = hidden.shape[0], ids.shape[0]
        return [like(num_rows)], [like(num_rows), like(num_rows, num_ids), like(num_ids, weight.shape[1])]

    @staticmethod
    def plain(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel: str,
        target: Tensor,
        ids: Tensor,
        target_offset: Tensor,
        offset: Tensor,
        without_hits: bool,
        positive_weight: float,
        scale: float,
        sparse: bool,
    ) -> Tensor:
        sets = (target.unsqueeze(-1), ids)
        logits = torch.cat([torchs.chosen_logits(hidden, weight, bias, one) for one in sets], -1)
        if without_hits:
            offset = offset.masked_fill(ids == target.unsqueeze(-1), torch.inf)
        offset = _side_by_side(target_offset, offset).to(logits)
        if kernel == "softmax_logits_":
            return _softmax_of_first(logits, offset, scale)
        x = scale * logits - offset
        return positive_weight * functional.softplus(-x[:, 0]) + functional.softplus(x[:, 1:]).sum(-1)

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel: str,
        target: Tensor,
        ids: Tensor,
        target_offset: Tensor,
        offset: Tensor,
        *options: Any,
    ) -> Tensor:
        arguments = (hidden, weight, bias, kernel, target, ids, target_offset, offset, *options)
        without_hits, positive_weight, scale, _ = options
        own = target.unsqueeze(-1)
        with without_autocast(hidden.device):
            rows = hidden.to(arithmetic(hidden, weight))
            target_logit = gather_dot(rows, weight, own)
            of_classes = class_rows(weight, ids, rows.dtype)
            logits = rows.new_empty(len(rows), len(ids))
            if bias is None:
                torch.mm(rows, of_classes.t(), out=logits)
            else:
                target_logit += bias[own].to(rows.dtype)
                torch.addmm(bias[ids].to(rows.dtype), rows, of_classes.t(), out=logits)
            target_logit, loss_of = target_logit.squeeze(-1), implementation(kernel, logits)
            if kernel == "softmax_logits_":
                left_out = target if without_hits else torch.full_like(target, -1)
                offsets = target_offset.to(logits), offset.to(logits)
                loss, target_slope = loss_of(target_logit, logits, *offsets, ids, left_out, scale)
            else:
                x = scale * target_logit - target_offset.to(logits)
                loss = positive_weight * functional.softplus(-x) + loss_of(logits, offset.to(logits), scale)
                target_slope = -scale * positive_weight * (-x).sigmoid()
            # Kernels write unseen by torch, whose selective checkpoints would hand out the slopes for the product.
            torch.autograd.graph.increment_version(logits)
        keep(ctx, arguments, target_slope, logits, of_classes)
        return loss  # type: ignore[no-any-return]

    @staticmethod
    @differentiable_by(plain)
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (hidden, weight, bias, _, target, ids, *rest), (target_slope, slope, rows_of_ids) = kept(ctx)
        target, upstream, sparse = target.unsqueeze(-1), upstream.unsqueeze(-1), rest[-1]
        with without_autocast(hidden.device):
            chosen = [ChosenSet(ids, slope), ChosenSet(target, target_slope.unsqueeze(-1))]
            grad_hidden = hidden_gradient(weight, chosen[1]).addmm_(slope, rows_of_ids).mul_(upstream)
            rows, wanted = hidden.to(slope.dtype), ctx.needs_input_grad[1:3]
            of_classes = class_gradients(rows, weight, bias, chosen, upstream, sparse=sparse, wanted=wanted)
        return grad_hidden.to(hidden.dtype), *of_classes, *(None,) * 9


def _softmax_of_first(logits: Tensor, offset: Tensor, scale: float) -> Tensor:
    """The loss of the kernels `softmax_rows` and `softmax_logits_`, of all logits (N, K)."""
    return -(scale * logits - offset).log_softmax(-1)[:, 0]


def _logistic(logits: Tensor, positive: Tensor, offset: Tensor, share: Tensor, scale: float) -> Tensor:
    """The loss of the kernel `logistic_rows`."""
    logits = (scale * logits - offset).masked_fill(share == 0, 0.0)
    return (share * functional.softplus(torch.where(positive, -logits, logits))).sum(-1)


def _side_by_side(target_offset: Tensor, offset: Tensor) -> Tensor:
    """Offsets (N, 1 + K) of the target and of the sampled classes, (K,) or (N, K)."""
    return torch.cat([target_offset.unsqueeze(-1), offset.expand(target_offset.shape[0], -1)], -1)


_LOSS_OF_LOGITS: dict[str, Callable[..., Tensor]] = {"softmax_rows": _softmax_of_first, "logistic_rows": _logistic}


def logistic_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    positive: Tensor,
    offset: Tensor,
    share: Tensor,
    *,
    scale: float = 1.0,
    sparse: bool = False,
) -> Tensor:
    r"""Return the logistic losses (N,) of rows with true and false classes of their own, differentiable.

    $$\ell_r = \sum_j v_{rj} \log(1 + e^{-y_{rj} x_{rj}}), \qquad
      x_{rj} = a (h_r \cdot w_{c_{rj}} + b_{c_{rj}}) - o_{rj}$$

    Args:
        hidden: (N, d).
        weight: (V, d) class rows.
        bias: (V,) or None.
        ids: (N, K) int64.
        positive: (N, K) bool: whether y is 1 or -1.
        offset: (N, K) o.
        share: (N, K) v; a class of share 0 counts for nothing.
        scale: a.
        sparse: give weight and bias sparse gradients.
    """
    numbers = (positive, offset, share)
    loss: Tensor = _OwnClasses.call(hidden, weight, bias, "logistic_rows", ids, scale, sparse, *numbers)
    return loss


def sampled_softmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ids: Tensor,
    target_offset: Tensor,
    offset: Tensor,
    *,
    without_hits: bool,
    scale: float = 1.0,
    sparse: bool = False,
) -> Tensor:
    r"""Return the cross-entropies (N,) of targets among themselves and sampled classes, differentiable.

    $$\ell_r = \log \Big(e^{x_r} + \sum_j e^{x_{rj}}\Big) - x_r, \qquad x = a (h_r \cdot w_c + b_c) - o$$

    Args:
        hidden: (N, d).
        weight: (V, d) class rows.
        bias: (V,) or None.
        target: (N,) int64.
        ids: (K,) or (N, K) int64.
        target_offset: (N,) o of the targets.
        offset: (K,) or (N, K) o of the sampled classes; +inf leaves one out.
        without_hits: leave out classes that are the row's target.
        scale: a.
        sparse: give weight and bias sparse gradients.
    """
    if ids.ndim == 1:
        options = (without_hits, 1.0, scale, sparse)
        shared: Tensor = _SharedClasses.call(
            hidden, weight, bias, "softmax_logits_", target, ids, target_offset, offset, *options
        )
        return shared
    own = target.unsqueeze(-1)
    if without_hits:
        offset = offset.masked_fill(ids == own, torch.inf)
    ids, offset = torch.cat([own, ids], -1), _side_by_side(target_offset, offset)
    loss: Tensor = _OwnClasses.call(hidden, weight, bias, "softmax_rows", ids, scale, sparse, offset)
    return loss


def noise_contrast(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ids: Tensor,
    target_offset: Tensor,
    offset: Tensor,
    *,
    positive_weight: float = 1.0,
    scale: float = 1.0,
    sparse: bool = False,
) -> Tensor:
    r"""Return the logistic losses (N,) of telling targets from sampled classes, differentiable.

    $$\ell_r = \beta \log(1 + e^{-x_r}) + \sum_j \log(1 + e^{x_{rj}}), \qquad x = a (h_r \cdot w_c + b_c) - o$$

    Args:
        hidden: (N, d).
        weight: (V, d) class rows.
        bias: (V,) or None.
        target: (N,) int64.
        ids: (K,) or (N, K) int64.
        target_offset: (N,) o of the targets.
        offset: (K,) or (N, K) o of the sampled classes; +inf leaves one out.
        positive_weight: beta.
        scale: a.
        sparse: give weight and bias sparse gradients.
    """
    if ids.ndim == 1:
        options = (False, positive_weight, scale, sparse)
        loss: Tensor = _SharedClasses.call(
            hidden, weight, bias, "logistic_logits_", target, ids, target_offset, offset, *options
        )
        return loss
    ids = torch.cat([target.unsqueeze(-1), ids], -1)
    offset = _side_by_side(target_offset, offset)
    positive = torch.zeros_like(ids, dtype=torch.bool)
    positive[:, 0] = True
    share = torch.ones_like(offset)
    share[:, 0] = positive_weight
    return logistic_rows(hidden, weight, bias, ids, positive, offset, share, scale=scale, sparse=sparse)
