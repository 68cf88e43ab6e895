"""The candidates that weigh most, out of a larger pool of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vastmax.samplers.base import Batch, Candidates, Sampler
from vastmax.samplers.conditional import BatchCandidates, ConditionalSampler, unrecorded
from vastmax.scoring import chosen_logits
from vastmax.validation import check_positive_int


class HardNegatives(ConditionalSampler):
    r"""The k candidates with the largest terms in the partition, out of a pool of draws from another sampler.

    A pool of `pool` draws is scored without gradient, and those k candidates of each row are kept whose corrected
    logit $s_j - \log m_j$ is largest, $m_j$ being the expected count in the pool. With one set for all rows, those
    are kept that have the largest share of the sampled partition $\sum_j e^{s_j - \log m_j}$ in the mean over the
    rows. Candidates equal to the target take part where a loss counts them, among independent draws.

    **The loss is biased.** It is that of the whole pool with the smallest terms left out: with the sampled softmax
    never above the loss of the pool, by $-\log(1 - \text{their share})$ below it, and equal to it where k is the
    size of the pool. Its optimum is not the data's distribution. It leans to what tells the target from its
    nearest competitors; classes that are nobody's competitor are not pushed down, and calibration is lost with
    them. For an unbiased way of keeping the largest terms take `TopAndTail`.

    Costs the scores of the pool, O(pool d) a row, without gradient; the gradient is that of k candidates.

    Args:
        sampler: where the pool comes from; may itself depend on the batch. Over `InBatch` the pool is the batch.
        pool: draws in a pool, at least as many as candidates are asked for.

    Raises:
        TypeError, ValueError: arguments that are not as above; a pool larger than the number of classes that
            `sampler` can draw, if it draws distinct ones.

    References:
        Xiong et al., Approximate Nearest Neighbor Negative Contrastive Learning, 2021 (why hard negatives help).

    Example:
        >>> from vastmax.heads import SampledSoftmax
        >>> from vastmax.samplers import Uniform
        >>> noise = HardNegatives(Uniform(1000), pool=200)
        >>> head = SampledSoftmax(16, 1000, sampler=noise, num_samples=20, shared=False)
        >>> loss = head(torch.randn(4, 16), torch.tensor([1, 2, 3, 999]))
    """

    independent = False

    def __init__(self, sampler: Sampler, pool: int) -> None:
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sampler: expected a vastmax.samplers.Sampler, got {type(sampler).__name__}")
        super().__init__(sampler.num_classes, unique=sampler.unique, device=sampler.device)
        self.pool = check_positive_int("pool", pool)
        if sampler.unique and self.pool > sampler.support_size:
            raise ValueError(
                f"pool: expected at most {sampler.support_size}, the number of classes that can be drawn without "
                f"replacement, got {pool}"
            )
        self.sampler = sampler
        self.takes_several = sampler.takes_several

    @property
    def support_size(self) -> int:
        """The number of classes that can be drawn."""
        return self.sampler.support_size

    def never_drawn(self) -> Tensor | None:
        """Return which classes the sampler never draws."""
        return self.sampler.never_drawn()

    @property
    def largest_set(self) -> int:
        """The size of the pool."""
        return self.pool

    def reads_class_rows(self) -> bool:
        """Return True: they are scored."""
        return True

    def given(self, batch: Batch, *, shared: bool) -> Sampler:
        """Return the candidates of one batch."""
        self._check_batch(batch)
        return _HardestOfPool(self.sampler.given(batch, shared=shared), self.pool, batch, shared=shared)

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"pool={self.pool}"


class _HardestOfPool(BatchCandidates):
    def __init__(self, noise: Sampler, pool: int, batch: Batch, *, shared: bool) -> None:
        super().__init__(noise.num_classes, unique=noise.unique, device=batch.target.device)
        self.noise, self.pool, self.batch, self.shared = noise, pool, batch, shared

    @property
    def support_size(self) -> int:
        return self.noise.support_size

    def _log_expected_count(self, ids: Tensor, k: int) -> Tensor:
        return self.noise._log_expected_count(ids, self.pool)

    def _sample(self, size: list[int], generator: torch.Generator | None) -> Candidates:
        k = size[-1]
        if k > self.pool:
            raise ValueError(f"size: expected k of at most pool = {self.pool}, got {k}")
        pool = self.noise.sample([*size[:-1], self.pool], generator=generator)
        with unrecorded(self.batch.hidden.device):
            term = self._log_terms(pool)
        k = min(k, term.shape[1])
        if self.shared:
            share = term.softmax(-1).nan_to_num(nan=0.0)  # nan in a row without candidates
            if self.batch.blank is not None:
                share = share.masked_fill(self.batch.blank.unsqueeze(-1), 0.0)
            share = share.mean(0)
            kept = share.topk(k).indices
            return Candidates(pool.ids[kept], pool.log_expected_count[..., kept], pool.unique)
        kept = term.topk(k).indices
        return Candidates(
            pool.ids.expand(term.shape).gather(1, kept),
            pool.log_expected_count.expand(term.shape).gather(1, kept),
            pool.unique,
        )

    def _log_terms(self, pool: Candidates) -> Tensor:
        """The log of what each candidate adds to the sampled partition of each row: (N, K)."""
        hidden, target, weight, bias, _ = self.batch
        (logit,) = chosen_logits(hidden, weight, pool.ids, linear_bias=bias)
        term = logit - pool.log_expected_count
        if pool.unique:
            term = term.masked_fill(pool.ids == target.unsqueeze(1), -math.inf)
        return term
