"""Clipping of the gradient norm over dense and sparse gradients together."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vastmax.validation import check_number, shown


@torch.no_grad()
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    r"""Scale all gradients in place so that their joint Euclidean norm is at most `max_norm`.

    $$g \leftarrow g \cdot \min\Big(1, \frac{\text{max\_norm}}{\lVert g \rVert_2 + 10^{-6}}\Big),$$

    where the norm is that of all gradients, dense and sparse, as one vector. Sparse gradients are coalesced
    first: the norm of a row is that of the sum of its entries. A norm that is not finite is not an error, as
    in `torch.nn.utils.clip_grad_norm_`, which this equals on dense gradients and which fails on sparse ones.

    Args:
        parameters: the parameters whose `.grad` is clipped; those without one are skipped.
        max_norm: the largest norm allowed, 0 or greater; infinity only measures.

    Returns:
        The norm before clipping, a scalar.

    Raises:
        ValueError: `max_norm` is negative or NaN.

    Example:
        >>> embedding = torch.nn.Embedding(10, 2, sparse=True)
        >>> embedding(torch.tensor([4, 4])).sum().backward()
        >>> clip_grad_norm_(embedding.parameters(), max_norm=1.0)
        tensor(2.8284)
    """
    if not check_number("max_norm", max_norm) >= 0:
        raise ValueError(f"max_norm: expected a number of at least 0, got {shown(max_norm)}")
    max_norm = check_number("max_norm", max_norm)
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    dense: list[Tensor] = []
    entries: list[Tensor] = []
    grads: list[Tensor] = []
    for param in params:
        if param.grad is None:
            continue
        if param.grad.is_sparse:
            param.grad = param.grad.coalesce()
            entries.append(param.grad.values())
            grads.append(entries[-1])
        else:
            dense.append(param)
            grads.append(param.grad)
    total_norm = get_total_norm(grads)
    clip_grads_with_norm_(dense, max_norm, total_norm)
    scale = (max_norm / (total_norm + 1e-6)).clamp(max=1.0)
    for values in entries:
        values.mul_(scale.to(values.device))
    return total_norm
