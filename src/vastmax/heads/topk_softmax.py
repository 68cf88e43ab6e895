"""The softmax over each row's best classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vastmax.functional.sparse import check_loss_k, topk_softmax_loss
from vastmax.heads.base import Head
from vastmax.heads.flat import FlatHead
from vastmax.scoring import linear_logits, linear_loss, linear_topk
from vastmax.scoring.top import TopK, topk_by_id
from vastmax.validation import check_k


class TopKSoftmax(FlatHead):
    r"""The softmax over the k largest logits of each row, trained a few rows at a time.

    $$\ell = \log \sum_{c \in T} e^{s_c} - s_y, \qquad
      T = \{y\} \cup \text{the } k - 1 \text{ largest of } (s_c)_{c \ne y}$$

    All classes are scored, and k of them get a gradient. The distribution is the softmax of the k largest logits:
    any other class has the exact probability 0, so `log_prob` is -inf there and `nll` inf. Of equal logits those of
    the lowest ids are taken, whatever is asked of the head. Where the target is among the k largest, loss and `nll`
    are one; elsewhere the target takes the place of the k-th in the loss, which is finite.

    `start_at` sets the bias to the log-probabilities asked for; where hidden is 0 the k most probable classes then
    have theirs, renormalised, and the others 0.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        k: classes that share the probability, from 2 to V; 1 only where V is 1.
        **options: those of `FlatHead`: bias, temperature, softcap, class_weight, ignore_index, reduction, device,
            dtype.

    Example:
        >>> head = TopKSoftmax(16, 1000, 10)
        >>> hidden = torch.randn(4, 16)
        >>> head(hidden, torch.tensor([1, 2, 3, 999])).backward()
        >>> head.log_prob(hidden).isfinite().sum(-1)
        tensor([10, 10, 10, 10])
    """

    takes_probabilities = False

    def __init__(self, in_features: int, num_classes: int, k: int, **options: Any) -> None:
        super().__init__(in_features, num_classes, **options)
        self.k = check_loss_k(k, self.num_classes)
        self.reset_parameters()

    forward = Head.forward

    @property
    def compiles(self) -> bool:
        """Not in one graph: its loss of logits is made of rows in blocks, by a function that no graph can name."""
        return False

    def _per_class(self, num_classes: int, **others: Any) -> dict[str, Any]:
        check_loss_k(self.k, num_classes)
        return super()._per_class(num_classes, **others)

    def _row_loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        return linear_loss(
            self._loss, self.divide(hidden), self.weight, linear_bias=self.exact_bias(), rows=(target,)
        )

    def _loss(self, scores: Tensor, target: Tensor) -> Tensor:
        return topk_softmax_loss(self.bend(scores), target, self.k, ignore_index=None, reduction="none")

    def _row_nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        return linear_loss(
            self._nll, self.divide(hidden), self.weight, linear_bias=self.exact_bias(), rows=(target,)
        )

    def _nll(self, scores: Tensor, target: Tensor) -> Tensor:
        log_prob, indices = self._log_softmax_of_largest(scores)
        own = indices == target.unsqueeze(-1)
        return torch.where(own.any(-1), -log_prob.masked_fill(~own, 0.0).sum(-1), torch.inf)

    def _log_softmax_of_largest(self, scores: Tensor) -> TopK:
        """The classes of scores (..., V) that share the probability and its logarithm, both (..., k)."""
        values, indices = topk_by_id(self.bend(scores), self.k)
        return TopK(values.log_softmax(-1), indices)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the exact log-probability of every class: (..., V), in nats; -inf for all but k."""
        self.check(hidden)
        scores = linear_logits(self.divide(hidden), self.weight, linear_bias=self.exact_bias())
        log_prob, indices = self._log_softmax_of_largest(scores)
        return torch.full_like(scores, -torch.inf).scatter(-1, indices, log_prob)

    def topk(self, hidden: Tensor, k: int) -> TopK:
        """Return the k most probable classes of each row, without an N x V tensor.

        Returns:
            `(values, indices)`, each (..., k): exact log-probabilities, falling, and class ids; past the head's
            own k the values are -inf and the classes those of the next largest logits. Equals go by rising id.
        """
        self.check(hidden)
        k = check_k(k, self.num_classes)
        values, indices = linear_topk(
            self.divide(hidden), self.weight, max(k, self.k), linear_bias=self.exact_bias(), link=self.link
        )
        nothing = torch.full_like(values[..., self.k :], -torch.inf)
        values = torch.cat([values[..., : self.k].log_softmax(-1), nothing], -1)
        return TopK(values[..., :k], indices[..., :k])

    def log_partition(self, hidden: Tensor) -> Tensor:
        """Return log Z of each row (...), of its k largest logits."""
        self.check(hidden)
        rows, bias = hidden.shape[:-1], self.exact_bias()
        found = linear_loss(
            self._log_partition, self.divide(hidden.reshape(-1, self.in_features)), self.weight, linear_bias=bias
        )
        return found.view(rows)

    def _log_partition(self, scores: Tensor) -> Tensor:
        return topk_by_id(self.bend(scores), self.k).values.logsumexp(-1)

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does, and its k."""
        return f"{super().extra_repr()}, k={self.k}"
