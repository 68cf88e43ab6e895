"""Ranking metrics from the ids of the best classes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vastmax.validation import check_distinct, check_int, check_positive_int, shown


class RankingScores(NamedTuple):
    """Each metric by cutoff k, a mean over rows."""

    recall: dict[int, float]
    ndcg: dict[int, float]
    mrr: dict[int, float]


class Ranking:
    r"""Recall, NDCG and mean reciprocal rank at several cutoffs, given the best classes of rows batch by batch.

    With $g_i$ 1 where the class at rank i is among the T relevant ones of a row, and 0 elsewhere,

    $$\text{recall@}k = \frac 1 T \sum_{i=1}^k g_i, \qquad
      \text{NDCG@}k = \frac{\sum_{i=1}^k g_i / \log_2(i + 1)}{\sum_{i=1}^{\min(T, k)} 1 / \log_2(i + 1)}, \qquad
      \text{MRR@}k = \max_{i \le k} \frac{g_i} i .$$

    With one relevant class per row, recall@k is the hit rate, or top-k accuracy. A head's `topk` gives the ranks
    over all V classes: nothing is sampled, and no N x V tensor is made.

    Args:
        k: the cutoffs.

    Raises:
        TypeError, ValueError: a cutoff that is not an integer of at least 1, or none.

    References:
        Jarvelin and Kekalainen, Cumulated Gain-Based Evaluation of IR Techniques, 2002.
        Krichene and Rendle, On Sampled Metrics for Item Recommendation, 2020: why all classes are ranked.

    Example:
        >>> ranking = Ranking(k=(1, 2))
        >>> ranking.update(torch.tensor([[7, 3], [5, 9]]), torch.tensor([3, 5]))
        >>> ranking.compute().recall, ranking.compute().mrr
        ({1: 0.5, 2: 1.0}, {1: 0.5, 2: 0.75})
    """

    def __init__(self, k: Sequence[int] = (1, 5, 10)) -> None:
        if not isinstance(k, Sequence):
            raise TypeError(f"k: expected a sequence of cutoffs, got {shown(k)} of type {type(k).__name__}")
        if not k:
            raise ValueError("k: expected at least one cutoff, got none")
        self.k = tuple(check_positive_int("k", cutoff) for cutoff in k)
        self.count = 0
        self._totals = torch.zeros(3, len(self.k), dtype=torch.float64)

    def update(self, indices: Tensor, target: Tensor, *, ignore_index: int = -100) -> None:
        """Add rows.

        Args:
            indices: (..., K) int64 class ids, best first, as of a head's `topk`; K at least the largest cutoff.
            target: (...) int64, the relevant class of each row, or (..., T), its relevant classes.
            ignore_index: fills the places of `target` that hold no class; rows with no class are left out.

        Raises:
            TypeError: a tensor that is not int64.
            ValueError: shapes that do not fit, or a class twice in a row.
        """
        ignore_index = check_int("ignore_index", ignore_index)
        for name, ids in (("indices", indices), ("target", target)):
            if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
                kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
                raise TypeError(f"{name}: expected an int64 tensor of class ids, got {kind}")
        if indices.ndim == 0 or indices.shape[-1] < max(self.k):
            raise ValueError(
                f"indices: expected shape (..., K) with K >= {max(self.k)}, got {tuple(indices.shape)}"
            )
        if target.ndim == indices.ndim - 1:
            target = target.unsqueeze(-1)
        if target.shape[:-1] != indices.shape[:-1]:
            rows = ", ".join(map(str, indices.shape[:-1]))
            raise ValueError(f"target: expected shape ({rows}) or ({rows}, T), got {tuple(target.shape)}")
        counted = (target != ignore_index).any(-1)
        best = indices[..., : max(self.k)]
        check_distinct("indices", best.masked_fill(~counted.unsqueeze(-1), ignore_index), ignore_index)
        check_distinct("target", target, ignore_index)
        indices, target = best[counted], target[counted]
        self._totals += self._rows(indices, target, target != ignore_index).cpu()
        self.count += len(target)

    def _rows(self, indices: Tensor, target: Tensor, relevant: Tensor) -> Tensor:
        """Return the sums over rows of each metric (3, cutoffs) of indices (N, K) and target (N, T)."""
        gain = ((indices.unsqueeze(-1) == target.unsqueeze(-2)) & relevant.unsqueeze(-2)).any(-1).double()
        rank = torch.arange(1, indices.shape[-1] + 1, dtype=torch.float64, device=indices.device)
        discount = 1 / (rank + 1).log2()
        num_relevant = relevant.sum(-1)
        ideal = discount.cumsum(0)
        recall, dcg = gain.cumsum(-1) / num_relevant.unsqueeze(-1), (gain * discount).cumsum(-1)
        reciprocal = (gain / rank).cummax(-1).values
        sums = []
        for k in self.k:
            ndcg = dcg[:, k - 1] / ideal[num_relevant.clamp(max=k) - 1]
            sums.append(torch.stack([recall[:, k - 1].sum(), ndcg.sum(), reciprocal[:, k - 1].sum()]))
        return torch.stack(sums, -1)

    def compute(self) -> RankingScores:
        """Return the means over all rows so far.

        Raises:
            ValueError: no row has been added.
        """
        if self.count == 0:
            raise ValueError("Ranking: expected at least one row before compute, got none")
        means = (self._totals / self.count).tolist()
        return RankingScores(*(dict(zip(self.k, values, strict=True)) for values in means))
