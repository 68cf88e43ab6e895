"""Clipping of gradients, dense and sparse together: by their norm, and by value."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import utils

from vastmax.validation import check_number, shown


@torch.no_grad()
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0) -> Tensor:
    r"""Scale all gradients in place so that their joint norm is at most `max_norm`.

    $$g \leftarrow g \cdot \min\Big(1, \frac{\text{max\_norm}}{\lVert g \rVert_p + 10^{-6}}\Big),$$

    where the norm is that of all gradients, dense and sparse, as one vector, with all parts of those that
    `fully_shard` shares out. Sparse gradients are coalesced first: the norm of a row is that of the sum of its
    entries. A norm that is not finite is not an error, as in `torch.nn.utils.clip_grad_norm_`, which this equals on
    dense gradients and which fails on sparse ones.

    Args:
        parameters: the parameters whose `.grad` is clipped; those without one are skipped.
        max_norm: the largest norm allowed, 0 or greater; infinity only measures.
        norm_type: p, greater than 0; infinity for the size of the largest element.

    Returns:
        The norm before clipping, a scalar.

    Raises:
        TypeError: `max_norm` or `norm_type` is not a number.
        ValueError: `max_norm` is negative or NaN, or `norm_type` not greater than 0.

    Example:
        >>> embedding = torch.nn.Embedding(10, 2, sparse=True)
        >>> embedding(torch.tensor([4, 4])).sum().backward()
        >>> clip_grad_norm_(embedding.parameters(), max_norm=1.0)
        tensor(2.8284)
    """
    max_norm = _check_bound("max_norm", max_norm)
    p = check_number("norm_type", norm_type)
    if not p > 0:  # for of the others, zeros would be a part, which a sparse gradient leaves out
        raise ValueError(f"norm_type: expected a number greater than 0, or infinity, got {shown(norm_type)}")
    dense, entries = _with_gradients(parameters)
    grads = [grad for param in dense if (grad := param.grad) is not None] + entries
    total_norm = _joint_norm([grad for grad in grads if grad.numel() > 0], p)  # the largest of none is no number
    utils.clip_grads_with_norm_(dense, max_norm, total_norm)
    scale = (max_norm / (total_norm + 1e-6)).clamp(max=1.0)
    for values in entries:
        values.mul_(scale.to(values.device))
    return total_norm


@torch.no_grad()
def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    r"""Clip every element of all gradients in place to `[-clip_value, clip_value]`.

    $$g \leftarrow \min(\max(g, -\text{clip\_value}), \text{clip\_value})$$

    Sparse gradients are coalesced first: it is the sum of an element's entries that is clipped. This is
    `torch.nn.utils.clip_grad_value_`, which fails on sparse gradients.

    Args:
        parameters: the parameters whose `.grad` is clipped; those without one are skipped.
        clip_value: the largest size allowed, 0 or greater.

    Raises:
        TypeError: `clip_value` is not a number.
        ValueError: `clip_value` is negative or NaN.

    Example:
        >>> embedding = torch.nn.Embedding(10, 2, sparse=True)
        >>> embedding(torch.tensor([4, 4])).sum().backward()
        >>> clip_grad_value_(embedding.parameters(), 0.5)
        >>> embedding.weight.grad.values()
        tensor([[0.5000, 0.5000]])
    """
    clip_value = _check_bound("clip_value", clip_value)
    dense, entries = _with_gradients(parameters)
    if dense:
        utils.clip_grad_value_(dense, clip_value)
    for values in entries:
        values.clamp_(-clip_value, clip_value)


def _joint_norm(grads: list[Tensor], p: float) -> Tensor:
    """Return the norm of gradients, of which several processes may share some (DTensors)."""
    shared = [grad for grad in grads if hasattr(grad, "full_tensor")]
    own = [grad for grad in grads if not hasattr(grad, "full_tensor")]
    if not shared or not own:
        return utils.get_total_norm(grads, p)
    of_shared: Any = utils.get_total_norm(shared, p)  # which sums up all parts
    return utils.get_total_norm([of_shared.full_tensor(), utils.get_total_norm(own, p)], p)


def _check_bound(name: str, bound: float) -> float:
    if not (number := check_number(name, bound)) >= 0:
        raise ValueError(f"{name}: expected a number of at least 0, got {shown(bound)}")
    return number


def _with_gradients(parameters: Tensor | Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters with a dense gradient, and the elements of the sparse gradients, coalesced in place."""
    dense: list[Tensor] = []
    entries: list[Tensor] = []
    for param in [parameters] if isinstance(parameters, Tensor) else parameters:
        if param.grad is None:
            continue
        if param.grad.is_sparse:
            param.grad = param.grad.coalesce()
            entries.append(param.grad.values())
        else:
            dense.append(param)
    return dense, entries
