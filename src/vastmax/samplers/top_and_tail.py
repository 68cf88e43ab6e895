"""The classes that the model thinks likeliest, and a sample of the rest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vastmax.checking import at_hand
from vastmax.differentiation import graph_of_its_own
from vastmax.samplers.base import Batch, Candidates, Sampler
from vastmax.samplers.conditional import BatchCandidates, ConditionalSampler, unrecorded
from vastmax.samplers.exclusion import is_among
from vastmax.scoring import linear_log_partition, linear_topk
from vastmax.validation import check_positive_int, shown


class TopAndTail(ConditionalSampler):
    r"""The model's `top` classes of each row, exactly, and a sample of distinct classes out of the others.

    Every class is among the candidates independently of the others, with probability

    $$\pi_c = 1 \text{ for the top}, \qquad \pi_c = 1 - e^{-k q_c} \text{ for the tail},$$

    q and the k draws being those of `sampler`. Sampled softmax on them has its optimum at the data's distribution,
    as with any distinct set; and the Horvitz-Thompson estimate $\sum_j e^{s_j} / \pi_j$ of the partition is
    unbiased, its largest terms exact. With one set for all rows, the top are the classes of the largest probability
    in the mean over the rows.

    Finding the top scores every class, without gradient: O(V d) a row, in blocks of bounded memory. What is saved
    is the gradient, and the rows that an optimizer touches.

    Args:
        sampler: where the tail comes from, with `unique=True`; its q must not depend on the batch.
        top: likeliest classes, of those that `sampler` can draw.

    Raises:
        TypeError, ValueError: arguments that are not as above.

    Example:
        >>> from vastmax.heads import SampledSoftmax
        >>> from vastmax.samplers import Uniform
        >>> noise = TopAndTail(Uniform(1000, unique=True), top=10)
        >>> head = SampledSoftmax(16, 1000, sampler=noise, num_samples=20)
        >>> loss = head(torch.randn(4, 16), torch.tensor([1, 2, 3, 999]))
    """

    independent = False

    def __init__(self, sampler: Sampler, top: int) -> None:
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sampler: expected a vastmax.samplers.Sampler, got {type(sampler).__name__}")
        if not sampler.unique or sampler.conditional:
            raise ValueError(
                "sampler: expected one with unique=True whose q does not depend on the batch, which draws a class "
                f"independently of the others, got {shown(sampler)}"
            )
        super().__init__(sampler.num_classes, unique=True, device=sampler.device)
        self.top = check_positive_int("top", top)
        if self.top > sampler.support_size:
            of = "num_classes" if sampler.support_size == self.num_classes else "the classes that can be drawn"
            raise ValueError(f"top: expected at most {of} = {sampler.support_size}, got {top}")
        self.sampler = sampler

    @property
    def support_size(self) -> int:
        """The number of classes that can be in the tail."""
        return self.sampler.support_size

    def never_drawn(self) -> Tensor | None:
        """Return which classes the sampler never draws."""
        return self.sampler.never_drawn()

    def reads_class_rows(self) -> bool:
        """Return True: they are scored."""
        return True

    def given(self, batch: Batch, *, shared: bool) -> Sampler:
        """Return the candidates of one batch."""
        self._check_batch(batch)
        hidden, _, linear_weight, linear_bias, _ = batch
        with unrecorded(hidden.device):
            never = self.never_drawn()
            if never is not None:  # neither in the tail nor in the top
                bias = linear_weight.new_zeros(self.num_classes) if linear_bias is None else linear_bias
                linear_bias = bias.masked_fill(never, -math.inf)
            if shared:
                total = total_probability(hidden, linear_weight, linear_bias)
                top = (total if never is None else total.masked_fill(never, -1.0)).topk(self.top).indices
            else:
                top = linear_topk(hidden, linear_weight, self.top, linear_bias=linear_bias).indices
        return _TopAndTailOfBatch(self.sampler, top)

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"top={self.top}"


class _TopAndTailOfBatch(BatchCandidates):
    """Top classes (top,) for all rows or (N, top), each row its own."""

    def __init__(self, tail: Sampler, top: Tensor) -> None:
        super().__init__(tail.num_classes, unique=True, device=top.device)
        self.tail = tail
        self.top = top.sort(-1).values

    @property
    def support_size(self) -> int:
        return self.tail.support_size

    def _sample(self, size: list[int], generator: torch.Generator | None) -> Candidates:
        tail = self.tail.sample(size, generator=generator)
        top_log_count = torch.zeros(self.top.shape, dtype=torch.float64, device=self.top.device)
        twice = is_among(tail.ids, self.top)
        if self.top.ndim == 1 and at_hand(twice):
            ids, log_count = tail.ids[~twice], tail.log_expected_count[~twice]
        else:
            ids, log_count = tail.ids.masked_fill(twice, 0), tail.log_expected_count.masked_fill(twice, math.inf)
        return Candidates(torch.cat([self.top, ids], -1), torch.cat([top_log_count, log_count], -1), unique=True)

    def _log_expected_count(self, ids: Tensor, k: int) -> Tensor:
        return self.tail._log_expected_count(ids, k).masked_fill(is_among(ids, self.top), 0.0)


def total_probability(hidden: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    """Return the sum over the rows of the softmax probability of every class, (V,), without an N x V tensor.

    Example:
        >>> hidden, weight = torch.randn(4, 8), torch.randn(100, 8)
        >>> total = total_probability(hidden, weight, None)
        >>> torch.allclose(total, (hidden @ weight.T).softmax(-1).sum(0), atol=1e-6)
        True
    """
    hidden, linear_weight = hidden.detach().clone(), linear_weight.detach()  # a clone can be saved for the gradient
    dtype = torch.promote_types(linear_weight.dtype, torch.float32)
    bias = linear_weight.new_zeros(len(linear_weight)) if linear_bias is None else linear_bias.detach().clone()
    bias = bias.to(dtype).requires_grad_()
    with torch.enable_grad(), graph_of_its_own():
        # The gradient of log Z with respect to a class's bias is the class's probability.
        log_partition = linear_log_partition(hidden, linear_weight, linear_bias=bias).log_partition
        (total,) = torch.autograd.grad(log_partition.sum(), bias)
    return total
