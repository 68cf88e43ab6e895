"""Heads that tell the target from candidates pair by pair, with no correction for how often those are drawn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vastmax.functional import negative_sampling_loss, one_vs_each_loss
from vastmax.heads.sampled_head import SampledHead, Scores
from vastmax.samplers import Candidates, Sampler
from vastmax.scoring.chosen_losses import noise_contrast
from vastmax.validation import check_share, shown


class NegativeSampling(SampledHead):
    r"""The negative sampling of word2vec: vectors rather than probabilities.

    $$\ell = -\beta \log \sigma(s_y) - \sum_j \log \sigma(-s_j), \qquad
      \beta = \alpha \left(t \left(1 - \tfrac 1 \alpha\right) + \tfrac 1 \alpha\right), \quad
      \alpha = \frac k {V - 1}$$

    The optimum is $s_c = \log (\beta p_c / m_c)$, with $m_c$ the expected count of class c. `nll`, `log_prob`,
    `topk` and `log_partition` put $\log (m_c / \beta)$ back; by `log_partition` one sees how near the result is to
    normalised.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        calibration: t, from 0, which is word2vec's $\beta = 1$, to 1, at which the scores of independent uniform
            negatives are the logits of probabilities however few of the V - 1 are drawn: generalised binary
            cross-entropy (gBCE), against the overconfidence of a recommender trained on few negatives.
            $\alpha$ is a share: 1 where k exceeds V - 1.
        **options: those of `SampledHead`.

    Raises:
        TypeError, ValueError: a `calibration` outside [0, 1]; a sampler whose q depends on the batch, of which
            there is no count per class to put back; a `softcap`, which the optimum would not keep to.

    References:
        Mikolov et al., Distributed Representations of Words and Phrases and their Compositionality, 2013.
        Levy and Goldberg, Neural Word Embedding as Implicit Matrix Factorization, 2014.
        Petrov and Macdonald, gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
        Sampling, 2023.

    Example:
        >>> from vastmax.samplers import Unigram
        >>> head = NegativeSampling(16, 4, sampler=Unigram([40, 30, 20, 10]), num_samples=5)
        >>> loss = head(torch.randn(8, 16), torch.arange(8) % 4)
    """

    def __init__(self, in_features: int, num_classes: int, *, calibration: float = 0.0, **options: Any) -> None:
        self.calibration = check_share("calibration", calibration)
        super().__init__(in_features, num_classes, **options)
        if self.link is not None:
            raise ValueError(
                f"softcap: expected None in {type(self).__name__}, which learns log(p / q), that has no bounds, "
                f"got {shown(options['softcap'])}"
            )
        self._check_q(self.sampler)

    def _per_class(self, num_classes: int, **others: Any) -> dict[str, Any]:
        settings = super()._per_class(num_classes, **others)
        self._check_q(settings["sampler"])
        return settings

    def _check_q(self, sampler: Sampler) -> None:
        if sampler.conditional:
            raise ValueError(
                f"sampler: expected one whose q does not depend on the batch, got {type(sampler).__name__}; "
                "negative sampling learns log(p / q), and its probabilities need q"
            )

    @property
    def positive_weight(self) -> float:
        r"""The weight $\beta$ of the target's term."""
        rate = min(1.0, self.num_samples / max(1, self.num_classes - 1))
        return rate * (self.calibration * (1 - 1 / rate) + 1 / rate)

    def log_prob_offset(self) -> Tensor:
        """The log expected counts over beta, which the training loss leaves out of the logits: (V,)."""
        return self.log_expected_count(self.every_class()) - math.log(self.positive_weight)

    def loss(self, scores: Scores) -> Tensor:
        """Return the binary losses of target and candidates, summed per row."""
        return negative_sampling_loss(
            scores.target_logit,
            scores.sampled_logit,
            positive_weight=self.positive_weight,
            mask=scores.candidates.padding.expand(scores.sampled_logit.shape),
            reduction="none",
        )

    def loss_in_one_pass(
        self, hidden: Tensor, target: Tensor, target_log_count: Tensor, candidates: Candidates
    ) -> Tensor:
        """Return the binary losses of target and candidates, summed per row."""
        uncorrected = torch.zeros_like(candidates.log_expected_count)
        return noise_contrast(
            hidden,
            self.weight,
            self.bias,
            target,
            candidates.ids,
            torch.zeros_like(target_log_count),
            uncorrected.masked_fill_(candidates.padding, math.inf),
            positive_weight=self.positive_weight,
            scale=1 / self._temperature,
            sparse=self.sparse,
        )

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        return f"{super().extra_repr()}, calibration={self.calibration:g}"


class OneVsEach(SampledHead):
    r"""The one-vs-each bound: the target against every other class, one pair at a time, over sampled classes.

    $$\ell = \sum_j \frac{[j \ne y]}{m_j} \log \left(1 + e^{s_j - s_y}\right), \qquad
      \mathbb{E}\, \ell = \sum_{c \ne y} \log \left(1 + e^{s_c - s_y}\right) \ge -\log p_y$$

    with $m_c$ the expected count of class c, so that k uniform candidates count (V - 1) / k each in expectation. An
    upper bound on the exact loss, tight for two classes, whose gradient is estimated without bias by any number
    of candidates from any distribution. A model that can represent the data's distribution has its optimum there,
    as every pair of classes has; one that cannot compromises otherwise than maximum likelihood does.

    Takes the arguments of `SampledHead`.

    References:
        Titsias, One-vs-Each Approximation to Softmax for Scalable Estimation of Probabilities, 2016.

    Example:
        >>> head = OneVsEach(16, 1000, num_samples=256)
        >>> hidden, target = torch.randn(4, 16), torch.tensor([1, 2, 3, 999])
        >>> bool(head(hidden, target) > head.nll(hidden, target).mean())
        True
    """

    def loss(self, scores: Scores) -> Tensor:
        """Return the estimated bound of each row."""
        return one_vs_each_loss(
            scores.target_logit,
            scores.sampled_logit,
            sampled_log_count=scores.candidates.log_expected_count,
            mask=scores.accidental_hit,
            reduction="none",
        )
