"""The most probable classes of each row, found block by block."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vastmax.checking import at_hand
from vastmax.compilation import operator
from vastmax.kernels import implementation
from vastmax.scoring.blocks import LinearScorer
from vastmax.scoring.class_gradients import arithmetic
from vastmax.scoring.every_class import check_linear
from vastmax.scoring.links import Link, check_link, link_of
from vastmax.scoring.partition import SplitPartition
from vastmax.validation import check_finite, check_k

TIED_ELEMENTS = 1 << 20
"""Numbers looked through at a time where a row's k-th largest is not the only one of its size."""


class TopK(NamedTuple):
    """The k best classes of each row, best first, equals by rising id."""

    values: Tensor
    indices: Tensor


def topk_by_id(values: Tensor, k: int) -> TopK:
    """Return the k largest numbers of the last axis, falling, and their places; of equals, those that stand first.

    `torch.topk` takes any of the equals at the edge, others for another k. Where the next number is smaller than
    the k-th, there is nothing to choose, and its answer needs at most to be put in order; else the row is looked
    through for what is equal to the k-th.

    Args:
        values: (..., V).
        k: at most V.
    """
    num_classes = values.shape[-1]
    if k == num_classes:
        return TopK(*values.sort(dim=-1, descending=True, stable=True))
    flat = values.detach().reshape(-1, num_classes)
    if not at_hand(flat):
        places = _best_by_id(flat, k).view(*values.shape[:-1], k)
        return TopK(values.gather(-1, places), places)
    largest, places = flat.topk(k + 1)
    equal = largest[:, 1:] == largest[:, :-1]
    places = places[:, :k]
    if equal.any():
        for rows in equal[:, -1].nonzero().squeeze(-1).split(max(1, TIED_ELEMENTS // num_classes)):
            places[rows] = _first_of_equals(flat[rows], largest[rows, :k], places[rows])
        places = places.sort(-1).values
        order = flat.gather(-1, places).sort(dim=-1, descending=True, stable=True).indices
        places = places.gather(-1, order)
    places = places.reshape(*values.shape[:-1], k)
    return TopK(values.gather(-1, places), places)


def _best_by_id(values: Tensor, k: int) -> Tensor:
    """Return the places (R, k) of the largest of values (R, V), of equals the first, without a look at them."""
    if values.dtype == torch.float64:
        return values.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    # No two of these integers are equal: the bits of a number, in the order of the numbers, above its place's.
    bits = (values.float() + 0.0).view(torch.int32).long()
    bits = torch.where(bits < 0, torch.iinfo(torch.int32).min - bits, bits)
    place = torch.arange(values.shape[-1], device=values.device)
    return ((bits << 32) - place).topk(k).indices


def best_of(values: Tensor, indices: Tensor, k: int) -> TopK:
    """Return the k largest of values (..., M) and their classes, falling, of equals those of the lowest ids."""
    indices, order = indices.sort(-1)
    values, place = topk_by_id(values.gather(-1, order), k)
    return TopK(values, indices.gather(-1, place))


def _first_of_equals(values: Tensor, largest: Tensor, places: Tensor) -> Tensor:
    """Return the places (R, k) of the largest of `values` (R, V); of those equal to the k-th, the first ones."""
    least, rank = largest[:, -1:], torch.arange(largest.shape[1], device=values.device)
    from_the_end = torch.arange(values.shape[1], 0, -1, dtype=torch.int32, device=values.device)
    first = torch.where(values == least, from_the_end, 0).topk(len(rank)).indices
    above = (largest != least).sum(-1, keepdim=True)
    return places.where(rank < above, first.gather(-1, (rank - above).clamp(min=0)))


@torch.no_grad()
def linear_topk(
    input: Tensor,
    linear_weight: Tensor,
    k: int,
    *,
    linear_bias: Tensor | None = None,
    softcap: float | None = None,
    link: Link | None = None,
    block_size: int | None = None,
) -> TopK:
    r"""Return the k largest log-probabilities of a linear layer's softmax and their classes, exactly.

    $$\log p_{rc} = s_{rc} - \log Z_r, \qquad s_{rc} = \text{cap}(h_r \cdot w_c + b_c)$$

    Logits are made one block at a time; a running best k and what log Z is made of are kept. No gradient.

    Args:
        input: (..., d) hidden rows.
        linear_weight: (V, d) class rows.
        k: classes wanted, at most V.
        linear_bias: (V,) or None.
        softcap: bound on the size of a logit, $\text{cap}(x) = \text{softcap} \tanh(x / \text{softcap})$; None for
            no bound.
        link: an increasing function from scores to logits, of `vastmax.scoring.links`, in place of `softcap`.
        block_size: classes scored at a time; chosen from the shapes if omitted.

    Returns:
        `TopK(values, indices)`, each (..., k): log-probabilities in nats, falling, and int64 class ids, those of
        equal logits by rising id; a masked class, of bias -inf, comes last.

    Raises:
        TypeError: a tensor of the wrong dtype, or k not an integer.
        ValueError: shapes that do not fit, k or the cap out of range, NaN or infinite input.

    Example:
        >>> hidden, weight = torch.randn(4, 8), torch.randn(1000, 8)
        >>> values, indices = linear_topk(hidden, weight, 5)
        >>> torch.equal(indices, (hidden @ weight.T).topk(5).indices)
        True
    """
    block_size = check_linear(input, linear_weight, linear_bias, block_size)
    check_link(link)
    check_finite("input", input)
    k = check_k(k, linear_weight.shape[0])
    rows = input.shape[:-1]
    hidden = input.reshape(-1, linear_weight.shape[1])
    values, indices = _linear_topk(hidden, linear_weight, linear_bias, k, link_of(softcap, link), block_size)
    return TopK(values.view(*rows, k), indices.view(*rows, k))


def _topk_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int, *_: Any) -> list[Tensor]:
    values = hidden.new_empty((hidden.shape[0], k), dtype=arithmetic(hidden, weight))
    return [values, torch.empty_like(values, dtype=torch.int64)]


@operator("Tensor hidden, Tensor weight, Tensor? bias, int k, str? link, int? block_size", _topk_shapes)
def _linear_topk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int, link: Link | None, block_size: int | None
) -> list[Tensor]:
    target = torch.zeros(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    scorer = LinearScorer(hidden, weight, bias, target, link=link, block_size=block_size)
    values, indices = _topk_shapes(hidden, weight, bias, k)
    with scorer.arithmetic():
        buffer = scorer.buffer()
        for block in scorer.row_blocks():
            values[block], indices[block] = _best(scorer, block, k, buffer)
    return [values, indices]


def _best(scorer: LinearScorer, rows: slice, k: int, buffer: Tensor) -> TopK:
    values = buffer.new_empty((rows.stop - rows.start, 0))
    indices = torch.empty_like(values, dtype=torch.int64)
    maximum = buffer.new_full((rows.stop - rows.start,), torch.finfo(buffer.dtype).min)
    log_mass = torch.full_like(maximum, -torch.inf)
    for classes in scorer.class_blocks():
        logits = scorer.logits(rows, classes, buffer)
        block = topk_by_id(logits, min(k, logits.shape[1]))
        values = torch.cat([values, block.values], -1)
        indices = torch.cat([indices, block.indices + classes.start], -1)
        # What was found before stands first, as its ids do.
        values, place = topk_by_id(values, min(k, values.shape[1]))
        indices = indices.gather(-1, place)
        # The best of a block is taken out of its mass, as a loss does with its target.
        logits.scatter_(-1, block.indices[:, :1], -torch.inf)
        part = SplitPartition.of(block.values[:, 0], implementation("row_sums", logits)(logits))
        highest = torch.maximum(maximum, part.maximum)
        log_mass = torch.logaddexp(log_mass + (maximum - highest), part.log_mass + (part.maximum - highest))
        maximum = highest
    return TopK((values - maximum.unsqueeze(-1)) - log_mass.unsqueeze(-1), indices)
