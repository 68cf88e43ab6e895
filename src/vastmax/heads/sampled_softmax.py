"""Heads whose loss is a softmax over sampled candidates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vastmax.functional import importance_sampled_softmax_loss, sampled_softmax_loss
from vastmax.functional.sampled import mean_class_loss
from vastmax.heads.sampled_head import SampledHead, Scores
from vastmax.heads.targets import RowLoss, TrueClasses
from vastmax.samplers import Candidates
from vastmax.scoring.chosen_losses import sampled_softmax
from vastmax.validation import check_share


class SampledSoftmax(SampledHead):
    r"""The softmax over the target and sampled candidates, each logit corrected for how often its class is drawn.

    $$\ell_y = -\log \frac{e^{s_y - \log m_y}}{e^{s_y - \log m_y} + \sum_j e^{s_j - \log m_j}}$$

    with $m_c$ the expected count of class c. The optimum is the data's distribution, for any number of candidates;
    candidates equal to the target stay where they are independent draws and go where they are distinct classes.

    This is the ranking form of noise-contrastive estimation: which of the 1 + k classes is the true one? Unlike
    the binary form, `NCE`, it leaves Z free and so needs no self-normalisation.

    With label smoothing the candidates, too, are targets, of the others: with class weights v,

    $$\ell = (1 - \epsilon)\, v_y \ell_y
      - \frac \epsilon V \sum_j \frac {v_j} {m_j} \log \frac{e^{s_j - \log m_j}}{\sum_i e^{s_i - \log m_i}},
      \qquad \mathbb E\, \ell = (1 - \epsilon)\, v_y \mathbb E\, \ell_y
      + \frac \epsilon V \sum_c v_c \mathbb E\, \ell_c .$$

    So the optimum is $(1 - \epsilon) p + \epsilon / V$, that of the exact loss, for any number of candidates. Of
    independent draws the target is compared with one less, to have as many rivals as each of them. Classes that are
    never drawn, or masked, have no part of the smoothing.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        label_smoothing: $\epsilon$, from 0 to 1: share of the target's mass spread evenly over the classes.
        **options: those of `SampledHead`.

    Raises:
        TypeError, ValueError: a `label_smoothing` that is not as above, or beside a single independent draw.

    References:
        Jean, Cho, Memisevic and Bengio, On Using Very Large Target Vocabulary for Neural Machine Translation, 2015.
        Ma and Collins, Noise Contrastive Estimation and Negative Sampling for Conditional Models, 2018.

    Example:
        >>> from vastmax.samplers import LogUniform
        >>> head = SampledSoftmax(16, 100_000, sampler=LogUniform(100_000), num_samples=256, sparse=True)
        >>> loss = head(torch.randn(4, 16), torch.tensor([1, 2, 3, 99_999]))
        >>> loss.backward()
        >>> head.weight.grad.layout
        torch.sparse_coo
    """

    def __init__(self, in_features: int, num_classes: int, *, label_smoothing: float = 0.0, **options: Any) -> None:
        super().__init__(in_features, num_classes, **options)
        self.label_smoothing = check_share("label_smoothing", label_smoothing)
        if self.label_smoothing > 0 and not self.sampler.unique and self.num_samples == 1 < self.num_classes:
            raise ValueError(
                f"num_samples: expected at least 2 independent draws beside label_smoothing={label_smoothing}, for "
                "each is compared with the others, got 1"
            )

    def loss(self, scores: Scores) -> Tensor:
        """Return the corrected cross-entropy of each row."""
        log_count, mask = scores.candidates.log_expected_count, None
        if scores.candidates.unique:
            mask = scores.accidental_hit
        elif self.label_smoothing > 0:
            mask = self._one_left_out(scores)
        loss = sampled_softmax_loss(
            scores.target_logit,
            scores.sampled_logit,
            scores.target_log_count,
            log_count,
            mask=mask,
            reduction="none",
        )
        if self.label_smoothing == 0:
            return loss
        of_candidates = None
        if self.class_weight is not None:
            loss = self.class_weight.to(loss.dtype)[scores.target] * loss
            of_candidates = self.class_weight[scores.candidates.ids]
        mean = mean_class_loss(scores.sampled_logit, log_count, self.num_classes, class_weight=of_candidates)
        return (1 - self.label_smoothing) * loss + self.label_smoothing * mean

    def _one_left_out(self, scores: Scores) -> Tensor:
        """(N, K) bool: True at one of each row's candidates, whatever that is: the last, where all are draws.

        Of a batch's targets it is that of the row before, for a row's own place is none of its candidates.
        """
        num_rows, num_candidates = scores.sampled_logit.shape
        place = torch.arange(num_candidates, device=scores.sampled_logit.device)
        row = torch.arange(num_rows, device=place.device)
        before = (torch.zeros_like(row) if self.sampler.takes_several else row) - 1
        return place == (before % num_candidates).unsqueeze(-1)

    def _true_classes(
        self, row_loss: RowLoss, hidden: Tensor, target: Tensor, target_weight: Tensor | None
    ) -> TrueClasses:
        true = super()._true_classes(row_loss, hidden, target, target_weight)
        return replace(true, weighed=self.label_smoothing > 0)

    def loss_in_one_pass(
        self, hidden: Tensor, target: Tensor, target_log_count: Tensor, candidates: Candidates
    ) -> Tensor | None:
        """Return the corrected cross-entropy of each row, unless it is smoothed."""
        if self.label_smoothing > 0:
            return None
        return sampled_softmax(
            hidden,
            self.weight,
            self.bias,
            target,
            candidates.ids,
            target_log_count,
            candidates.log_expected_count,
            without_hits=candidates.unique,
            scale=1 / self._temperature,
            sparse=self.sparse,
        )

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        smoothing = f", label_smoothing={self.label_smoothing:g}" if self.label_smoothing > 0 else ""
        return super().extra_repr() + smoothing


class ImportanceSampledSoftmax(SampledHead):
    r"""The softmax with its log-partition estimated from the candidates alone, by importance sampling.

    $$\ell = -s_y + \log \hat Z, \qquad \hat Z = \sum_j e^{s_j - \log m_j}$$

    $\hat Z$ is unbiased and its logarithm is low by about $1 / 2k$ times the relative variance of $e^s / q$: the
    optimum is biased, less as k grows, and with few candidates the loss has no lower bound, for a target that
    is not among them can rise for nothing. Take it with a sampler that follows the model, or with
    `samplers.TopAndTail`, whose candidates hold the largest terms of Z; else take `SampledSoftmax`.

    Takes the arguments of `SampledHead`.

    References:
        Bengio and Senecal, Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language
        Model, 2008.

    Example:
        >>> head = ImportanceSampledSoftmax(16, 1000, num_samples=256)
        >>> hidden, target = torch.randn(4, 16), torch.tensor([1, 2, 3, 999])
        >>> (head(hidden, target) - head.nll(hidden, target).mean()).abs() < 0.2
        tensor(True)
    """

    def loss(self, scores: Scores) -> Tensor:
        """Return the importance-sampled cross-entropy of each row."""
        return importance_sampled_softmax_loss(
            scores.target_logit, scores.sampled_logit, scores.candidates.log_expected_count, reduction="none"
        )
