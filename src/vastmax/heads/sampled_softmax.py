"""Heads whose loss is a softmax over sampled candidates."""

from __future__ import annotations

from torch import Tensor

from vastmax.functional import importance_sampled_softmax_loss, sampled_softmax_loss
from vastmax.heads.sampled_head import SampledHead, Scores
from vastmax.samplers import Candidates
from vastmax.scoring.chosen_losses import sampled_softmax


class SampledSoftmax(SampledHead):
    r"""The softmax over the target and sampled candidates, each logit corrected for how often its class is drawn.

    $$\ell = -\log \frac{e^{s_y - \log m_y}}{e^{s_y - \log m_y} + \sum_j e^{s_j - \log m_j}}$$

    with $m_c$ the expected count of class c. The optimum is the data's distribution, for any number of candidates;
    candidates equal to the target stay where they are independent draws and go where they are distinct classes.

    This is the ranking form of noise-contrastive estimation: which of the 1 + k classes is the true one? Unlike
    the binary form, `NCE`, it leaves Z free and so needs no self-normalisation.

    Takes the arguments of `SampledHead`.

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

    def loss(self, scores: Scores) -> Tensor:
        """Return the corrected cross-entropy of each row."""
        return sampled_softmax_loss(
            scores.target_logit,
            scores.sampled_logit,
            scores.target_log_count,
            scores.candidates.log_expected_count,
            mask=scores.accidental_hit if scores.candidates.unique else None,
            reduction="none",
        )

    def loss_in_one_pass(
        self, hidden: Tensor, target: Tensor, target_log_count: Tensor, candidates: Candidates
    ) -> Tensor:
        """Return the corrected cross-entropy of each row."""
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
