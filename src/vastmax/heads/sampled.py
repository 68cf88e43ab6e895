"""Heads that train on the target and a few sampled classes: scoring x sampler x loss."""

from __future__ import annotations

import copy
from abc import abstractmethod

import torch
from torch import Tensor

from vastmax.functional import nce_loss, negative_sampling_loss, sampled_softmax_loss
from vastmax.heads.base import FlatHead
from vastmax.reduction import reduce_rows
from vastmax.samplers import Candidates, Sampler, Uniform
from vastmax.scoring import chosen_logits
from vastmax.validation import check_positive_int


class SampledHead(FlatHead):
    """A flat head whose loss is a function of the logits of the target and of sampled candidates.

    A step costs O(1 + num_samples) a row, whatever V is, if `sparse=True` and the optimizer is one of
    `vastmax.optim`, which touch only the rows that have a gradient.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        sampler: the noise distribution; uniform if omitted, which is right for any numbering of the classes but
            wasteful where their frequencies differ: give `samplers.Unigram(counts)` if counts are known.
        num_samples: k, candidates drawn for a step or, with `shared=False`, for each row.
        shared: draw one set of candidates for all rows of a batch; scoring it is one matrix product.
        sparse: give weight and bias sparse gradients, as `nn.Embedding(sparse=True)` does.
        bias: whether each class has a bias.
        ignore_index: rows with this target take no part in the loss.
        reduction: `"mean"`, `"sum"` or `"none"`.
        device: where the parameters and the sampler's tables are.
        dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        sampler: Sampler | None = None,
        num_samples: int = 1024,
        shared: bool = True,
        sparse: bool = False,
        bias: bool = True,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive_int("in_features", in_features)
        check_positive_int("num_classes", num_classes)
        check_positive_int("num_samples", num_samples)
        if sampler is None:
            sampler = Uniform(num_classes)
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sampler: expected a vastmax.samplers.Sampler, got {type(sampler).__name__}")
        if sampler.num_classes != num_classes:
            raise ValueError(f"sampler: expected one of num_classes={num_classes} classes, got {sampler!r}")
        if sampler.unique and num_samples > sampler.support_size:
            raise ValueError(
                f"num_samples: expected at most {sampler.support_size}, the number of classes that can be drawn "
                f"without replacement, got {num_samples}"
            )
        super().__init__(
            in_features,
            num_classes,
            bias=bias,
            ignore_index=ignore_index,
            reduction=reduction,
            device=device,
            dtype=dtype,
        )
        if sampler.device != self.weight.device and not self.weight.is_meta:
            sampler = copy.deepcopy(sampler).to(self.weight.device)  # the caller's stays where it is
        self.sampler = sampler
        self.num_samples = num_samples
        self.shared = shared
        self.sparse = sparse
        self.reset_parameters()

    @abstractmethod
    def row_loss(
        self, target_logit: Tensor, sampled_logit: Tensor, target: Tensor, candidates: Candidates
    ) -> Tensor:
        """Return the loss per row (N,) of target logits (N,) and sampled logits (N, K)."""

    def forward(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw candidates and return the training loss, a scalar or (...), in nats.

        Args:
            hidden: (..., d).
            target: (...) int64 class ids, or `ignore_index`.
            sample_weight: (...) weight per row; the mean divides by their sum.
            generator: source of the draws, on the head's device; torch's global one if omitted.

        Raises:
            TypeError: a tensor of the wrong dtype.
            ValueError: shapes that do not fit, a target out of range, NaN or infinite hidden, or a target that
                the sampler gives probability 0, for which the loss is not defined.
        """
        self.check(hidden, target, sample_weight)
        counted = target != self.ignore_index
        rows, label = hidden[counted], target[counted]
        self.check_drawable(label)
        size = [self.num_samples] if self.shared else [len(label), self.num_samples]
        candidates = self.sampler.sample(size, generator=generator)
        target_logit, sampled_logit = chosen_logits(
            rows,
            self.weight,
            label.unsqueeze(-1),
            candidates.ids,
            linear_bias=self.bias,
            sparse=self.sparse,
        )
        loss = self.row_loss(target_logit.squeeze(-1), sampled_logit, label, candidates)
        weight = None if sample_weight is None else sample_weight[counted]
        loss = reduce_rows(loss, reduction=self.reduction, weight=weight)
        if self.reduction == "none":
            return loss.new_zeros(target.shape).masked_scatter(counted, loss)
        return loss

    def log_expected_count(self, ids: Tensor) -> Tensor:
        """Return the log of how often each class is expected among a row's candidates."""
        return self.sampler.log_expected_count(ids, self.num_samples)

    def check_drawable(self, target: Tensor) -> None:
        """Raise ValueError if the sampler never draws one of the targets: its log expected count is -inf."""
        never = self.sampler.log_prob(target).isneginf()
        if never.any():
            raise ValueError(
                f"target: expected classes that the sampler can draw, got {target[never][0].item()}, "
                f"whose probability is 0 under {self.sampler!r}; give it a positive count"
            )

    def every_class(self) -> Tensor:
        """The ids of all classes."""
        return torch.arange(self.num_classes, device=self.weight.device)

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        return f"{super().extra_repr()}, num_samples={self.num_samples}, shared={self.shared}, sparse={self.sparse}"


class SampledSoftmax(SampledHead):
    r"""The softmax over the target and sampled candidates, each logit corrected for how often its class is drawn.

    $$\ell = -\log \frac{e^{s_y - \log m_y}}{e^{s_y - \log m_y} + \sum_j e^{s_j - \log m_j}}$$

    with $m_c$ the expected count of class c. The optimum is the data's distribution, for any number of candidates;
    candidates equal to the target stay where they are independent draws and go where they are distinct classes.

    Takes the arguments of `SampledHead`.

    References:
        Jean, Cho, Memisevic and Bengio, On Using Very Large Target Vocabulary for Neural Machine Translation, 2015.

    Example:
        >>> from vastmax.samplers import LogUniform
        >>> head = SampledSoftmax(16, 100_000, sampler=LogUniform(100_000), num_samples=256, sparse=True)
        >>> loss = head(torch.randn(4, 16), torch.tensor([1, 2, 3, 99_999]))
        >>> loss.backward()
        >>> head.weight.grad.layout
        torch.sparse_coo
    """

    def row_loss(
        self, target_logit: Tensor, sampled_logit: Tensor, target: Tensor, candidates: Candidates
    ) -> Tensor:
        """Return the corrected cross-entropy per row."""
        accidental_hit = candidates.ids == target.unsqueeze(-1) if candidates.unique else None
        return sampled_softmax_loss(
            target_logit,
            sampled_logit,
            self.log_expected_count(target),
            candidates.log_expected_count,
            mask=accidental_hit,
            reduction="none",
        )


class NCE(SampledHead):
    r"""Noise-contrastive estimation: tell the target from the noise, and learn log-probabilities that need no Z.

    $$\ell = -\log \sigma(s_y - \log m_y) - \sum_j \log \sigma(-(s_j - \log m_j))$$

    with $m_c$ the expected count of class c. The optimum is $s_c = \log p_c$, Z near 1, as `log_partition` shows.
    The bias starts at the noise distribution's log-probabilities, so that Z starts near 1 and the first losses do
    not depend on V. `nll`, `log_prob` and `topk` normalise exactly.

    Takes the arguments of `SampledHead`.

    References:
        Gutmann and Hyvarinen, Noise-contrastive estimation, 2010.
        Mnih and Teh, A fast and simple algorithm for training neural probabilistic language models, 2012.

    Example:
        >>> from vastmax.samplers import Unigram
        >>> head = NCE(16, 4, sampler=Unigram([40, 30, 20, 10], power=1.0), num_samples=2)
        >>> head.bias.exp()
        tensor([0.4000, 0.3000, 0.2000, 0.1000], grad_fn=<ExpBackward0>)
    """

    def reset_parameters(self) -> None:
        """Draw the weight as `nn.Linear` does; start the bias at the log-probabilities of the noise."""
        super().reset_parameters()
        if self.bias is not None and not self.bias.is_meta:
            log_prob = self.sampler.log_prob(self.every_class())
            drawable = log_prob.isfinite()
            # A class that is never drawn is pushed down by nothing: it starts with the rarest one that is.
            self.start_at(log_prob.where(drawable, log_prob[drawable].min()))

    def row_loss(
        self, target_logit: Tensor, sampled_logit: Tensor, target: Tensor, candidates: Candidates
    ) -> Tensor:
        """Return the binary losses of target and noise, summed per row."""
        return nce_loss(
            target_logit,
            sampled_logit,
            self.log_expected_count(target),
            candidates.log_expected_count,
            reduction="none",
        )


class NegativeSampling(SampledHead):
    r"""The negative sampling of word2vec: vectors rather than probabilities.

    $$\ell = -\log \sigma(s_y) - \sum_j \log \sigma(-s_j)$$

    The optimum is $s_c = \log (p_c / m_c)$, with $m_c$ the expected count of class c. `nll`, `log_prob`, `topk` and
    `log_partition` add $\log m_c$ back; by `log_partition` one sees how near the result is to normalised.

    Takes the arguments of `SampledHead`.

    References:
        Mikolov et al., Distributed Representations of Words and Phrases and their Compositionality, 2013.
        Levy and Goldberg, Neural Word Embedding as Implicit Matrix Factorization, 2014.

    Example:
        >>> from vastmax.samplers import Unigram
        >>> head = NegativeSampling(16, 4, sampler=Unigram([40, 30, 20, 10]), num_samples=5)
        >>> loss = head(torch.randn(8, 16), torch.arange(8) % 4)
    """

    def log_prob_offset(self) -> Tensor:
        """The log expected counts, which the training loss leaves out of the logits: (V,)."""
        return self.log_expected_count(self.every_class())

    def row_loss(
        self, target_logit: Tensor, sampled_logit: Tensor, target: Tensor, candidates: Candidates
    ) -> Tensor:
        """Return the binary losses of target and candidates, summed per row."""
        padding = candidates.padding.expand(sampled_logit.shape) if candidates.unique else None
        return negative_sampling_loss(target_logit, sampled_logit, mask=padding, reduction="none")
