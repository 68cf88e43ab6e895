r"""The probabilities of entmax, to rounding: the equation of its threshold, solved without sorting every class.

With $a = \alpha - 1$ and the largest logit of a row at 0,

$$p_c = \exp_\alpha(s_c - A) = [1 + a (s_c - A)]_+^{1/a}, \qquad \sum_c p_c = 1,$$

and A is at least 0, so only classes within $1/a$ of the largest can have a probability above 0. They are few, and
all else happens among them, in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from vastmax.checking import at_hand
from vastmax.kernels.reference.tsallis import exponential_moment, tsallis_entropy

CPU_BLOCK = 1 << 17
"""Logits solved at a time on a CPU, whose cache then holds what the iterations read again and again."""

DEVICE_BLOCK = 1 << 24
"""Logits solved at a time elsewhere."""

STEPS = 64
"""Newton's steps where it cannot be looked at whether one more changes anything: several times what any takes."""

EPS = torch.finfo(torch.float64).eps


@torch.no_grad()
def entmax(logits: Tensor, order: Tensor, *, log: bool) -> Tensor:
    r"""Return the entmax of rows, or its logarithm, -inf where the entmax is 0.

    Args:
        logits: (N, V), float32 or float64, of a finite largest logit in every row.
        order: $a = \alpha - 1$, at least 0, float64 (N, 1), or (1, 1) for all rows.
        log: whether to return the logarithm.

    Returns:
        (N, V) in the dtype of `logits`.
    """
    found = torch.empty_like(logits)
    block = CPU_BLOCK if logits.device.type == "cpu" else DEVICE_BLOCK
    step = max(1, block // logits.shape[1])
    for start in range(0, logits.shape[0], step):
        rows = slice(start, start + step)
        found[rows] = _solve_block(logits[rows], order if len(order) == 1 else order[rows], log)
    return found


def entmax_gradient(
    found: Tensor, order: Tensor, upstream: Tensor, *, log: bool, of_order: bool
) -> tuple[Tensor, Tensor | None]:
    r"""Return the gradients of the logits, (N, V), and of each row's order, (N, 1), or None unless `of_order`.

    With $g_c = p_c^{1-a}$, the slope of $\exp_\alpha$ at p, the gradient of the logits is
    $J u = g \odot (u - \langle g, u \rangle / \sum_c g_c)$. A change of $\alpha$ at fixed logits is a change of the
    logits by $-\partial \log_\alpha p / \partial \alpha$ at fixed $\alpha$.

    Args:
        found: (N, V) what `entmax` returned.
        order: as it was for `entmax`.
        upstream: (N, V) gradient of `found`; that of a class outside the support is not looked at.
        log: as it was for `entmax`.
        of_order: whether the order wants a gradient.
    """
    outside, log_p, slope_of_log, slope = _slopes(found, order, log)
    weighted = (slope_of_log if log else slope) * upstream.masked_fill(outside, 0.0)
    steep = order > 1
    if steep.any():
        # The smallest probability has by far the largest slope: the rest is counted from its upstream gradient.
        least = log_p.detach().masked_fill(outside, torch.inf).argmin(-1, keepdim=True)
        origin = weighted.gather(-1, least) / slope.gather(-1, least).masked_fill(~steep, 1.0)
        weighted = torch.where(steep, (weighted - slope * origin).scatter(-1, least, 0.0), weighted)
    grad_logits = weighted - slope * (weighted.sum(-1, keepdim=True) / slope.sum(-1, keepdim=True))
    grad_order = None
    if of_order:
        grad_order = -(grad_logits * _slope_of_log_alpha(log_p, order)).sum(-1, keepdim=True)
    return grad_logits, grad_order


def entmax_direction(
    found: Tensor, order: Tensor, of_logits: Tensor | None, of_order: Tensor | None, *, log: bool
) -> Tensor:
    r"""Return how the entmax of rows, or its logarithm, changes along a direction (N, V).

    $J v = g \odot (v - \langle g, v \rangle / \sum_c g_c)$, with v the direction of the logits and what that of
    $\alpha$ is worth in them, as in `entmax_gradient`; its logarithm's is that over p. 0 outside the support.

    Args:
        found: (N, V) what `entmax` returned.
        order: as it was for `entmax`.
        of_logits: (N, V) direction of the logits; None for 0.
        of_order: the direction of `order`; None for 0.
        log: as it was for `entmax`.
    """
    outside, log_p, slope_of_log, slope = _slopes(found, order, log)
    direction = torch.zeros_like(found) if of_logits is None else of_logits.masked_fill(outside, 0.0)
    if of_order is not None:
        direction = direction - of_order.to(found.dtype) * _slope_of_log_alpha(log_p, order)
    # As in the gradient, the smallest probability has by far the largest slope where the order is steep.
    least = log_p.detach().masked_fill(outside, torch.inf).argmin(-1, keepdim=True)
    direction = torch.where(order > 1, direction - direction.gather(-1, least), direction)
    mean = (slope * direction).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True)
    return (slope_of_log if log else slope) * (direction - mean)


def _slopes(found: Tensor, order: Tensor, log: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return which classes are outside the support, log p (0 there), and g / p and g (0 there)."""
    outside = found == (-torch.inf if log else 0.0)
    log_p = found.masked_fill(outside, 0.0) if log else found.masked_fill(outside, 1.0).log()
    # Past the square root of the largest number, a slope stands for infinity.
    most = math.log(torch.finfo(found.dtype).max) / 2
    slope_of_log = (-order.to(found.dtype) * log_p).clamp(max=most).exp().masked_fill(outside, 0.0)
    return outside, log_p, slope_of_log, slope_of_log * (log_p.exp() if log else found)


def _slope_of_log_alpha(log_p: Tensor, order: Tensor) -> Tensor:
    r"""Return $\partial \log_\alpha p / \partial \alpha$."""
    return log_p.square() * exponential_moment(order.to(log_p.dtype) * log_p, 1)


def entmax_conjugate(logits: Tensor, probability: Tensor, order: Tensor) -> Tensor:
    r"""Return $\langle p, s \rangle + H_\alpha(p)$, the maximum that entmax attains, less the largest logit.

    Args:
        logits: (N, V).
        probability: (N, V) their entmax.
        order: as it was for `entmax`.

    Returns:
        (N,) in the dtype of `logits`.
    """
    below = logits - logits.amax(-1, keepdim=True)
    expected = (probability * below.masked_fill_(probability == 0, 0.0)).sum(-1)
    # The largest logit alone gives 0: less than that is rounding.
    return (expected + tsallis_entropy(probability, order)).clamp(min=0)


def _solve_block(logits: Tensor, order: Tensor, log: bool) -> Tensor:
    largest = logits.amax(-1, keepdim=True)
    # Rounded to the logits' dtype the bound may rise, but not past the next of their values: hence >=.
    bound = (largest.double() - 1 / order).to(logits.dtype)
    candidates = logits >= bound
    num_candidates = int(candidates.sum(-1).max()) if at_hand(candidates) else logits.shape[1]
    if 2 * num_candidates > logits.shape[1]:
        return _solve_candidates(logits.double() - largest, order, log).to(logits.dtype)
    largest_logits, place = logits.topk(num_candidates, sorted=False)
    found = _solve_candidates(largest_logits.double() - largest, order, log).to(logits.dtype)
    return torch.full_like(logits, -torch.inf if log else 0.0).scatter_(-1, place, found)


def _solve_candidates(logits: Tensor, order: Tensor, log: bool) -> Tensor:
    steep = order.squeeze(-1) > 1
    if not at_hand(steep):
        found = _steep(logits, order.clamp(min=1))
        found = found.log() if log else found
        return torch.where(steep.unsqueeze(-1), found, _gentle(logits, order.clamp(max=1), log))
    if not steep.any():
        return _gentle(logits, order, log)
    if steep.all():
        found = _steep(logits, order)
        return found.log() if log else found
    found = torch.empty_like(logits)
    found[~steep] = _gentle(logits[~steep], order[~steep], log)
    found[steep] = _solve_candidates(logits[steep], order[steep], log)
    return found


def _rounds(values: Tensor) -> Iterable[int]:
    """Newton's steps: as many as it takes, where that can be looked at, and else more than it ever took."""
    return itertools.count() if at_hand(values) else range(STEPS)


def _gentle(logits: Tensor, order: Tensor, log: bool) -> Tensor:
    r"""Solve for A where $0 \le a \le 1$.

    $(\sum_c p_c)^a$ is a 1/a-norm of a vector that falls linearly in A, so convex, and its logarithm is as convex
    at a = 0: Newton's steps from A = 0, where the sum is at least 1, rise to the solution and never pass it.
    They are exact at once where the support's logits are equal, and at a = 0.
    """
    partition = torch.zeros_like(logits[:, :1])
    for _ in _rounds(logits):
        probability, slope = _exp_alpha(logits - partition, order)
        total = probability.sum(-1, keepdim=True)
        step = -total * _scaled_expm1(-total.log(), order) / slope.sum(-1, keepdim=True)
        moves = step > 4 * EPS * (1 + partition)
        if at_hand(moves) and not moves.any():
            break
        partition += torch.where(moves, step, 0.0)
    # Dividing by the sum takes away what the rounding of A leaves.
    return _log_exp_alpha(logits - partition, order) - total.log() if log else probability / total


def _exp_alpha(value: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Return the alpha-exponential p of values up to 0, and its slope p^(1-a)."""
    if len(order) == 1 and at_hand(order) and order.item() == 1:
        probability = (value + 1).clamp_(min=0)
        return probability, (probability > 0).to(value.dtype)
    if len(order) == 1 and at_hand(order) and order.item() == 0.5:
        root = (value / 2 + 1).clamp_(min=0)
        return root.square(), root
    log_probability = _log_exp_alpha(value, order)
    probability = log_probability.exp()
    slope = ((1 - order) * log_probability).exp_().masked_fill_(probability == 0, 0.0)
    return probability, slope


def _log_exp_alpha(value: Tensor, order: Tensor) -> Tensor:
    return torch.where(order == 0, value, (order * value).clamp_(min=-1).log1p_() / order)


def _scaled_expm1(value: Tensor, order: Tensor) -> Tensor:
    return torch.where(order == 0, value, (order * value).expm1_() / order)


def _steep(logits: Tensor, order: Tensor) -> Tensor:
    r"""Solve for the smallest probability v above 0 where $a > 1$.

    There a probability near 0 changes without bound as A does, and no rounded A gives it. But with m its class,

    $$p_c = (v^a + a (s_c - s_m))^{1/a},$$

    the a-norm of two numbers: well-conditioned, rising and convex in v. Newton's steps from v = 1/n, where the sum
    over the n classes of the support is at least 1, fall to the solution and never pass it. The support is the
    longest run of the largest logits whose sum at v = 0 is below 1.
    """
    logits, place = logits.sort(-1, descending=True)
    size = _support_size(logits, order)
    excess = _excess(logits, size, order)
    inside = torch.arange(1, logits.shape[1] + 1, device=logits.device) <= size
    smallest = 1 / size.double()
    for _ in _rounds(logits):
        larger, smaller = torch.maximum(smallest, excess), torch.minimum(smallest, excess)
        probability = (larger * (1 + (smaller / larger) ** order) ** (1 / order)).masked_fill_(~inside, 0.0)
        slope = (smallest / probability).pow_(order - 1).masked_fill_(~inside, 0.0)
        step = (probability.sum(-1, keepdim=True) - 1) / slope.sum(-1, keepdim=True)
        moves = step > 4 * EPS
        if at_hand(moves) and not moves.any():
            break
        smallest = (smallest - torch.where(moves, step, 0.0)).clamp_(min=torch.finfo(torch.float64).tiny)
    return torch.zeros_like(logits).scatter_(-1, place, probability / probability.sum(-1, keepdim=True))


def _support_size(logits: Tensor, order: Tensor) -> Tensor:
    """Search for the size (N, 1) of the support among logits that fall."""
    low = torch.ones_like(logits[:, :1], dtype=torch.int64)
    high = torch.full_like(low, logits.shape[1])
    for _ in range(logits.shape[1].bit_length()):
        middle, searching = (low + high + 1) // 2, low < high
        inside = _excess(logits, middle, order).sum(-1, keepdim=True) < 1
        low, high = torch.where(searching & inside, middle, low), torch.where(searching & ~inside, middle - 1, high)
    return low


def _excess(logits: Tensor, size: Tensor, order: Tensor) -> Tensor:
    """Return the probabilities if that of the `size`-th class were 0; they are inf or nan if its logit is -inf."""
    return (order * (logits - logits.gather(-1, size - 1))).clamp_(min=0) ** (1 / order)
