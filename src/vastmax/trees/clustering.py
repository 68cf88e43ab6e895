"""Trees of similar classes: vectors divided by their principal direction."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vastmax.trees.halving import halved
from vastmax.trees.tree import Tree
from vastmax.validation import check_class_rows, check_counts, check_finite, check_per_class

POWER_ITERATIONS = 8
"""Enough to find a direction worth dividing by: a better one of nearly the same variance divides no better."""


@torch.no_grad()
def clustered(vectors: Tensor, counts: Tensor | ArrayLike | None = None) -> Tree:
    r"""Build the tree that divides classes at the median of their vectors' principal direction, over and over.

    $$u = \arg\max_{\lVert u \rVert = 1} \sum_{c \in \text{node}} (u \cdot (x_c - \bar x))^2$$

    Similar classes share a path, so that a node is a question about meaning rather than frequency. Depths differ
    by at most 1; or, with counts, the classes keep the order that this gives them and each node divides its range
    where the counts are nearest to equal, so that a frequent class has a short path: at most two nodes more
    than the entropy of the counts, on average. All groups of a level are divided at once; each level takes O(V d),
    and there are log V. Nothing is random: the power iteration for $u$ starts at the vector farthest from the mean.

    Args:
        vectors: (V, d) floating-point: embeddings, or the `weight` of a head trained before.
        counts: (V,) how often each class occurs, 0 or greater; one never counted weighs a thousandth of the mean.

    Returns:
        The tree, on the CPU.

    Raises:
        TypeError: `vectors` not floating-point, counts that are no numbers.
        ValueError: `vectors` not of that shape or not finite; counts of another number, negative or all 0.

    Source: Sproull, *Refinements to nearest-neighbor searching in k-dimensional trees*, Algorithmica 6, 1991;
    Boley, *Principal direction divisive partitioning*, Data Mining and Knowledge Discovery 2, 1998; Mehlhorn, *A
    best possible bound for the weighted path length of binary search trees*, SIAM Journal on Computing 6, 1977.

    Example:
        >>> tree = clustered(torch.tensor([[0.0], [10.0], [1.0], [8.0]]))
        >>> tree.paths(torch.arange(4)).nodes
        tensor([[0, 1],
                [0, 2],
                [0, 1],
                [0, 2]])
    """
    check_class_rows("vectors", vectors)
    check_finite("vectors", vectors)
    vectors = vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32))
    vectors = vectors / vectors.abs().max().clamp(min=torch.finfo(vectors.dtype).tiny)

    # The groups of a level differ in size by at most 1: a table with a row per group, the last place empty in some.
    groups = torch.arange(len(vectors), device=vectors.device).unsqueeze(0)
    size = torch.tensor([[len(vectors)]], device=vectors.device)
    while groups.shape[1] > 1:
        width = groups.shape[1]
        filled = torch.arange(width, device=vectors.device) < size
        score = _principal_score(vectors[groups], filled).masked_fill(~filled, torch.inf)
        groups = groups.gather(1, score.argsort(dim=1, stable=True))
        half = (size + 1) // 2
        place = torch.arange((width + 1) // 2, device=vectors.device)
        columns = torch.cat([place.expand(len(groups), -1), half + place], 1).clamp(max=width - 1)
        groups = groups.gather(1, columns).view(2 * len(groups), -1)
        size = torch.cat([half, size - half], 1).view(-1, 1)
    order = groups[size > 0].cpu()
    if counts is None:
        return halved(order)
    weight = check_counts("counts", counts).cpu()
    check_per_class("counts", weight, len(vectors))
    return halved(order, weight[order].clamp(min=1e-3 * weight.mean().item()))


def _principal_score(rows: Tensor, filled: Tensor) -> Tensor:
    """Project the rows (G, m, d) of each group, centred, on their principal direction: (G, m)."""
    count = filled.sum(1)[:, None, None].clamp(min=1)
    rows = rows * filled.unsqueeze(-1)
    rows = (rows - rows.sum(1, keepdim=True) / count) * filled.unsqueeze(-1)
    farthest = rows.square().sum(-1).argmax(1)
    direction = rows[torch.arange(len(rows), device=rows.device), farthest].unsqueeze(-1)
    tiny = torch.finfo(rows.dtype).tiny
    for _ in range(POWER_ITERATIONS):
        direction = rows.transpose(1, 2) @ (rows @ direction)
        direction = direction / direction.abs().amax(1, keepdim=True).clamp(min=tiny)
    return (rows @ direction).squeeze(-1)
