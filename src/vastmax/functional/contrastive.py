"""Contrastive losses of two batches of paired rows: each row's own key among the keys of all rows.

No N x N tensor is made: the logits exist a block at a time. Rows are scored by dot product as they are given;
normalise them first for the cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.compilation import Coded
from vastmax.differentiation import check_not_batched
from vastmax.functional.contrastive_direction import one_direction
from vastmax.functional.contrastive_negatives import check_negatives, what_is_left_out
from vastmax.functional.precision import at_least_float32
from vastmax.reduction import REDUCTIONS, check_sample_weight, reduce_rows
from vastmax.scoring import linear_loss
from vastmax.validation import check_choice, check_finite, check_finite_number, check_hidden, check_scalar


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    hard_negative_weight: float = 0.0,
    symmetric: bool = False,
    both_views: bool = False,
    decoupled: bool = False,
    in_batch: bool = True,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the cross-entropy of each row's own key among the keys of all rows and further negatives.

    With $s_{ij} = q_i \cdot k_j / T$, the positives $P_i$ of row i (its own key, and with `labels` those of every
    row of its label) and $m_i$ negatives $A_i$ (all other keys, and `negatives`),

    $$\ell_i = \log \Big( \sum_{p \in P_i} e^{s_{ip}} + m_i \sum_{j \in A_i} w_{ij} e^{s_{ij}} \Big)
      - \frac{1}{|P_i|} \sum_{p \in P_i} s_{ip}, \qquad
      w_{ij} = \frac{e^{\beta s_{ij}}}{\sum_{j' \in A_i} e^{\beta s_{ij'}}} .$$

    With $\beta = 0$ this is cross-entropy, and with `labels` the supervised contrastive loss with the mean outside
    of the logarithm.

    With `both_views` the rows of both sides are scored among one another, 2N of them, each row itself left out: row
    i of either side has the other side's row i as its own key, and all other rows as negatives. This is NT-Xent of
    SimCLR, and with `labels` SupCon. The loss of pair i is the mean of those of its two rows.

    With `decoupled` the sum over $P_i$ is left out of the logarithm. The gradient flows to the negatives too,
    if they want one. Half-precision inputs are multiplied and summed in float32, and the loss is float32.

    Args:
        query: (N, d).
        key: (N, d), paired with `query` row by row.
        negatives: (K, d) for all rows, or (N, K, d), each row's own.
        temperature: T, greater than 0; a tensor () gets a gradient.
        labels: (N,) int64; rows of one label are positives of one another. They serve, too, where the same key
            occurs in several rows and would be its own negative.
        mask: (N, N) bool, True where a key is known to be no negative of a query and is left out of $A_i$; or
            (N, N + K), the columns of `negatives` behind, which are the only ones with `in_batch=False`. Positives
            stay. With `symmetric` or `both_views`, key i leaves out the rows of pair j where `mask[j, i]` is True.
        hard_negative_weight: $\beta$, at least 0: how much more the negatives with high scores count.
        symmetric: take the mean with the loss of each key among the queries; not with `negatives`.
        both_views: take that mean, and score each row among those of its own side, too.
        decoupled: leave the positives out of the sum that they are compared with. A row without negatives has no
            loss then and counts for nothing; without normalised rows the loss has no lower bound.
        in_batch: whether the other rows' keys are negatives; if not, `negatives` are the only ones.
        sample_weight: (N,) weight per row; the mean divides by their sum.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (N,) with `reduction="none"`, in nats.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, NaN or infinite input, an option out of range, `negatives` or
            `both_views` with `symmetric=True`, `in_batch=False` without `negatives`, with `labels` or `both_views`.

    References:
        van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018.
        Chen, Kornblith, Norouzi and Hinton, A Simple Framework for Contrastive Learning of Visual Representations,
        2020 (`both_views`).
        Khosla et al., Supervised Contrastive Learning, 2020 (`labels`, as in their $L_{out}$).
        Yeh et al., Decoupled Contrastive Learning, 2022 (`decoupled`, with `both_views`).
        Robinson, Chuang, Sra and Jegelka, Contrastive Learning with Hard Negative Samples, 2021
        (`hard_negative_weight`, without their correction for false negatives).

    Example:
        >>> query, key = torch.randn(4, 8), torch.randn(4, 8)
        >>> dense = torch.nn.functional.cross_entropy(query @ key.T / 0.5, torch.arange(4))
        >>> torch.allclose(info_nce(query, key, temperature=0.5), dense, atol=1e-5)
        True
    """
    temperature = _check_pairs(temperature, sample_weight, reduction, query=query, key=key)
    check_negatives(negatives, query, in_batch=in_batch)
    if symmetric and negatives is not None:
        raise ValueError("negatives: expected None with symmetric=True, got a tensor: they are keys, not queries")
    if both_views and symmetric:
        raise ValueError("both_views: expected False with symmetric=True, whose mean it takes already, got True")
    if both_views and not in_batch:
        raise ValueError("both_views: expected False with in_batch=False, which takes no other row, got True")
    left_out = what_is_left_out(mask, negatives, query, in_batch=in_batch)
    if labels is not None and not in_batch:
        raise ValueError("labels: expected None with in_batch=False, which takes no other row's key, got a tensor")
    hard_negative_weight = check_finite_number("hard_negative_weight", hard_negative_weight, at_least=0.0)
    if labels is not None:
        _check_labels(labels, len(query))
    query, key = at_least_float32(query), at_least_float32(key)
    if both_views and negatives is not None:
        negatives = at_least_float32(negatives)  # whose gradients from both directions are summed, and then rounded
    loss = partial(
        one_direction,
        negatives=negatives,
        temperature=temperature,
        labels=labels,
        hardness=hard_negative_weight,
        both_views=both_views,
        decoupled=decoupled,
        in_batch=in_batch,
        sample_weight=sample_weight,
        reduction=reduction,
    )
    of_queries = loss(query, key, left_out)
    return (of_queries + loss(key, query, left_out.transposed())) / 2 if symmetric or both_views else of_queries


def clip_loss(
    image: Tensor, text: Tensor, *, temperature: float | Tensor = 0.07, reduction: str = "mean"
) -> Tensor:
    r"""Return the mean of `info_nce` from images to texts and from texts to images.

    $$\ell_i = -\tfrac 1 2 \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}
      - \tfrac 1 2 \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ji}}},
      \qquad s_{ij} = x_i \cdot y_j / T$$

    Args:
        image: (N, d), normalised for the cosine.
        text: (N, d), paired with `image` row by row.
        temperature: T, greater than 0; a tensor () gets a gradient, as CLIP learns it.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (N,) with `reduction="none"`, in nats.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, NaN or infinite input, an option out of range.

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.

    Example:
        >>> clip_loss(torch.zeros(4, 8), torch.zeros(4, 8)).exp()
        tensor(4.)
    """
    _check_pairs(temperature, None, reduction, image=image, text=text)
    return info_nce(image, text, temperature=temperature, symmetric=True, reduction=reduction)


def siglip_loss(
    image: Tensor,
    text: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the loss of telling, for every pair of an image and a text, whether they belong together.

    $$\ell_i = -\sum_j \log \sigma\left(z_{ij} (x_i \cdot y_j / T + b)\right), \qquad
      z_{ij} = 1 \text{ if } i = j \text{ and } -1 \text{ if not}$$

    The mean over rows is the sum over all pairs divided by N, as published.

    Args:
        image: (N, d), normalised for the cosine.
        text: (N, d), paired with `image` row by row.
        temperature: T, greater than 0; a tensor () gets a gradient.
        bias: b; a tensor () gets a gradient. It starts negative, since nearly all pairs do not belong together.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A scalar, or (N,) with `reduction="none"`, in nats.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, NaN or infinite input, an option out of range.

    References:
        Zhai, Mustafa, Kolesnikov and Beyer, Sigmoid Loss for Language Image Pre-Training, 2023.

    Example:
        >>> loss = siglip_loss(torch.zeros(4, 8), torch.zeros(4, 8), bias=0.0)
        >>> torch.allclose(loss, 4 * torch.tensor(2.0).log())
        True
    """
    temperature = _check_pairs(temperature, None, reduction, image=image, text=text)
    bias = check_scalar("bias", bias)
    image = at_least_float32(image) / temperature
    if not isinstance(bias, Tensor):
        bias = torch.full((), bias, dtype=image.dtype, device=image.device)
    every_bias = bias.to(image).expand(len(text))
    own = torch.arange(len(text), device=text.device)
    loss = linear_loss(_SigmoidPairs(), image, text, linear_bias=every_bias, rows=(own,))
    return reduce_rows(loss, reduction=reduction)


@dataclass(frozen=True)
class _SigmoidPairs(Coded):
    """The loss (n,) of logits (n, N), and where among them the own key's is."""

    def __call__(self, logits: Tensor, own: Tensor) -> Tensor:
        own = own.unsqueeze(-1)
        return functional.softplus(logits.scatter(-1, own, -logits.gather(-1, own))).sum(-1)


def _check_pairs(
    temperature: float | Tensor, sample_weight: Tensor | None, reduction: str, **sides: Tensor
) -> float | Tensor:
    """Return the temperature; raise unless the sides, by the caller's names, are finite rows alike (N, d)."""
    (first, queries), (second, keys) = sides.items()
    if not isinstance(queries, Tensor) or not queries.is_floating_point():
        kind = queries.dtype if isinstance(queries, Tensor) else type(queries).__name__
        raise TypeError(f"{first}: expected a floating-point tensor (N, d), got {kind}")
    if queries.ndim != 2 or len(queries) == 0:
        raise ValueError(f"{first}: expected shape (N, d) with at least one row, got {tuple(queries.shape)}")
    check_hidden(second, keys, queries.shape[1])
    if keys.shape != queries.shape:
        raise ValueError(
            f"{second}: expected the shape of {first}, {tuple(queries.shape)}, got {tuple(keys.shape)}"
        )
    temperature = check_scalar("temperature", temperature, above=0.0)
    check_choice("reduction", reduction, REDUCTIONS)
    if sample_weight is not None:
        check_sample_weight(sample_weight, queries.shape[:1])
    check_finite(first, queries)
    check_finite(second, keys)
    return temperature


def _check_labels(labels: Tensor, num_rows: int) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: expected an int64 tensor ({num_rows},), got {kind}")
    check_not_batched("labels", labels)
    if labels.shape != (num_rows,):
        raise ValueError(f"labels: expected shape ({num_rows},), one per row, got {tuple(labels.shape)}")
