"""The other rows' targets as candidates."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vastmax.samplers.base import Batch, Candidates, Sampler
from vastmax.samplers.conditional import BatchCandidates, ConditionalSampler, unrecorded
from vastmax.samplers.unigram import log_frequency
from vastmax.validation import check_counts, check_finite_number
from vastmax.versions import Versions

LEARNED = ("mean_gap", "last_draw", "num_gaps", "num_draws")
"""What is learned, under its names in the state dict: B, t and n of every class, and the number of all draws."""


class InBatch(ConditionalSampler):
    r"""The targets of the other rows of the batch, as independent draws from the classes' frequencies q.

    The candidates of row r are the targets of the N - 1 other rows, where class c is expected $(N - 1) q_c$ times.
    A row's own target is none of its candidates; another row's target of the same class is, as an accidental hit
    among independent draws. The head's `num_samples` and `shared` play no part. A batch of one row has no
    candidates, and so a sampled softmax of zero. A row with several true classes would have its own others among
    its candidates, and is refused.

    The frequencies come from `counts`, or are learned from the targets that pass in training. There every target
    is a draw, and $1 / q_c$ the mean number of draws from one of class c to the next. Of a class with m draws in
    a batch, the last being draw t of all,

    $$B_c \leftarrow (1 - \alpha) B_c + \alpha \frac{t - t_c} m, \qquad t_c \leftarrow t, \qquad q_c = 1 / B_c,$$

    with $\alpha = \max(1 - (1 - \text{rate})^m, m / (n_c + m))$ and $n_c$ the gaps before: the plain mean of all
    gaps, the first of which is set to V, until a moving average at `rate` takes over. From then on the relative
    standard error of $q_c$ is about $\sqrt{\text{rate} / 2}$, and but for that the frequencies sum to one.

    What is learned is part of the state dict, 3 V + 1 float64 numbers under `sampler`: `nn.Linear` takes that of a
    head with `strict=False`. A state dict without it, of `nn.Linear` or of a head with another sampler, is loaded
    with `strict=True` too, and leaves what is learned as it is. With `counts` there is nothing to save: a flat
    head's state dict is that of `nn.Linear`. A forward that `torch.utils.checkpoint` runs again learns once.

    Args:
        num_classes: V.
        counts: (V,) counts of the classes; learned if omitted.
        rate: of the moving average of learned frequencies, between 0 and 1.
        device: where the tables are; that of `counts` if they are a tensor.

    Raises:
        TypeError, ValueError: arguments that are not as above.

    References:
        Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations, 2019.

    Example:
        >>> from vastmax.heads import SampledSoftmax
        >>> head = SampledSoftmax(16, 1000, sampler=InBatch(1000))
        >>> loss = head(torch.randn(4, 16), torch.tensor([1, 2, 3, 999]))
        >>> head.sampler.log_prob(torch.tensor([1, 5])).exp()
        tensor([0.0020, 0.0010], dtype=torch.float64)
    """

    takes_several = False

    independent = False

    _log_q: Tensor | None
    mean_gap: Tensor
    last_draw: Tensor
    num_gaps: Tensor
    num_draws: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        counts: Tensor | ArrayLike | None = None,
        rate: float = 0.01,
        device: torch.device | str | None = None,
    ) -> None:
        count = None if counts is None else check_counts("counts", counts)
        super().__init__(num_classes, device=count.device if count is not None and device is None else device)
        self.rate = check_finite_number("rate", rate, above=0.0, below=1.0)
        if count is not None:
            if len(count) != self.num_classes:
                raise ValueError(f"counts: expected one for each of {self.num_classes} classes, got {len(count)}")
            log_q = log_frequency(count, power=1.0).to(self.device)
            self._support_size = int(log_q.isfinite().sum())
            self._register_table("_log_q", log_q)
        else:
            self._support_size = self.num_classes
            self._register_table("_log_q", None)
            zeros = torch.zeros(self.num_classes, dtype=torch.float64, device=self.device)
            self._register_table("mean_gap", zeros + self.num_classes, saved=True)
            self._register_table("last_draw", zeros.clone(), saved=True)
            self._register_table("num_gaps", zeros + 1, saved=True)
            self._register_table("num_draws", zeros.new_zeros(()), saved=True)
        self._versions = Versions()

    @property
    def support_size(self) -> int:
        """The number of classes with positive q."""
        return self._support_size

    def given(self, batch: Batch, *, shared: bool) -> Sampler:
        """Return the candidates of one batch, after learning from its targets in training."""
        self._check_batch(batch)
        if self._log_q is not None:
            return _OtherTargets(self.num_classes, batch, self._log_prob)
        learn = partial(self._learn, batch.target, batch.blank) if self.training else None
        mean_gap = self._versions.read(lambda: {"mean_gap": self.mean_gap}, after=learn)["mean_gap"]
        with unrecorded(batch.target.device):
            return _OtherTargets(self.num_classes, batch, lambda ids: -mean_gap[ids].log())

    def _learn(self, target: Tensor, blank: Tensor | None) -> None:
        with unrecorded(target.device):
            counted = torch.ones_like(target, dtype=torch.bool) if blank is None else ~blank
            # In the order of the classes, blank rows behind: the last of a class's draws speaks for all of them.
            ids, order = target.masked_fill(~counted, self.num_classes).sort(stable=True)
            place = torch.arange(len(ids), device=ids.device)
            first, last = (ids != ids.roll(by) for by in (1, -1))
            first[:1], last[-1:] = True, True
            last &= ids < self.num_classes
            ids = ids.clamp(max=self.num_classes - 1)
            self._versions.before_change(lambda: {"mean_gap": (ids, self.mean_gap[ids])})
            count = place - torch.where(first, place, 0).cummax(0).values + 1
            draw = self.num_draws + counted.cumsum(0)[order]
            mean_gap = (draw - self.last_draw[ids]) / count
            share = torch.maximum(1 - (1 - self.rate) ** count.double(), count / (self.num_gaps[ids] + count))
            self.mean_gap.index_add_(0, ids, last * share * (mean_gap - self.mean_gap[ids]))
            self.last_draw.index_add_(0, ids, last * (draw - self.last_draw[ids]))
            self.num_gaps.index_add_(0, ids, (last * count).to(self.num_gaps.dtype))
            self.num_draws += counted.sum()

    def _log_prob(self, ids: Tensor) -> Tensor:
        return -self.mean_gap[ids].log() if self._log_q is None else self._log_q[ids]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *args: Any,
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *args)
        learned = [f"{prefix}{name}" for name in LEARNED]
        if not any(name in state_dict for name in learned):
            missing_keys[:] = [name for name in missing_keys if name not in learned]

    def extra_repr(self) -> str:
        """Return the constructor's arguments, the counts as whether there are any."""
        source = f"rate={self.rate:g}" if self._log_q is None else "counts=..."
        return f"num_classes={self.num_classes}, {source}"


class _OtherTargets(BatchCandidates):
    def __init__(self, num_classes: int, batch: Batch, log_q: Callable[[Tensor], Tensor]) -> None:
        super().__init__(num_classes, device=batch.target.device)
        self.target, self.blank, self.log_q = batch.target, batch.blank, log_q
        # Without others, any constant: it cancels.
        self.log_others: float | Tensor = math.log(max(1, len(self.target) - 1))
        if self.blank is not None:
            self.log_others = ((~self.blank).sum() - 1).clamp(min=1).double().log()

    def _sample(self, size: list[int], generator: torch.Generator | None) -> Candidates:
        log_count = self._log_expected_count(self.target, size[-1])
        left_out = torch.eye(len(self.target), dtype=torch.bool, device=self.target.device)
        if self.blank is not None:
            left_out = left_out | self.blank
        return Candidates(self.target, torch.where(left_out, math.inf, log_count), unique=False)

    def _log_expected_count(self, ids: Tensor, k: int) -> Tensor:
        return self.log_others + self.log_q(ids)
