"""The most probable classes of each row, found block by block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vastmax.scoring.blocks import LinearScorer
from vastmax.scoring.every_class import check_linear
from vastmax.scoring.links import Link
from vastmax.validation import check_finite, check_positive_int


class TopK(NamedTuple):
    """The k best classes of each row, best first."""

    values: Tensor
    indices: Tensor


@torch.no_grad()
def linear_topk(
    input: Tensor,
    linear_weight: Tensor,
    k: int,
    *,
    linear_bias: Tensor | None = None,
    link: Link | None = None,
    block_size: int | None = None,
) -> TopK:
    r"""Return the k largest log-probabilities of a linear layer's softmax and their classes, exactly.

    $$\log p_{rc} = h_r \cdot w_c + b_c - \log Z_r$$

    Logits are made one block at a time; a running best k and a running log-partition are kept. No gradient.

    Args:
        input: (..., d) hidden rows.
        linear_weight: (V, d) class rows.
        k: classes wanted, at most V.
        linear_bias: (V,) or None.
        link: an increasing function from scores to logits, of `vastmax.scoring.links`.
        block_size: classes scored at a time; chosen from the shapes if omitted.

    Returns:
        `TopK(values, indices)`, each (..., k): log-probabilities in nats, falling, and int64 class ids.

    Raises:
        TypeError: a tensor of the wrong dtype, or k not an integer.
        ValueError: shapes that do not fit, k out of range, NaN or infinite input.

    Example:
        >>> hidden, weight = torch.randn(4, 8), torch.randn(1000, 8)
        >>> values, indices = linear_topk(hidden, weight, 5)
        >>> torch.equal(indices, (hidden @ weight.T).topk(5).indices)
        True
    """
    check_linear(input, linear_weight, linear_bias, block_size)
    check_finite("input", input)
    if check_positive_int("k", k) > linear_weight.shape[0]:
        raise ValueError(f"k: expected at most num_classes = {linear_weight.shape[0]}, got {k}")
    rows = input.shape[:-1]
    hidden = input.reshape(-1, linear_weight.shape[1])
    target = torch.zeros(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    scorer = LinearScorer(hidden, linear_weight, linear_bias, target, link=link, block_size=block_size)
    values = hidden.new_empty((hidden.shape[0], k), dtype=scorer.dtype)
    indices = torch.empty((hidden.shape[0], k), dtype=torch.int64, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        buffer = scorer.buffer()
        for block in scorer.row_blocks():
            values[block], indices[block] = _best(scorer, block, k, buffer)
    return TopK(values.view(*rows, k), indices.view(*rows, k))


def _best(scorer: LinearScorer, rows: slice, k: int, buffer: Tensor) -> TopK:
    log_partition = torch.tensor(-torch.inf, dtype=scorer.dtype, device=buffer.device)
    values = buffer.new_empty((rows.stop - rows.start, 0))
    indices = torch.empty_like(values, dtype=torch.int64)
    for classes in scorer.class_blocks():
        logits = scorer.logits(rows, classes, buffer)
        block = logits.topk(min(k, logits.shape[1]))
        values = torch.cat([values, block.values], -1)
        indices = torch.cat([indices, block.indices + classes.start], -1)
        values, place = values.topk(min(k, values.shape[1]))
        indices = indices.gather(-1, place)
        log_partition = torch.logaddexp(log_partition, logits.logsumexp(-1, keepdim=True))
    return TopK(values - log_partition, indices)
