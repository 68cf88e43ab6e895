"""One table of losses on logits: a new loss joins by one line and passes every check of test_loss_conformance.py.

A loss is called with logits (..., 1 + K), the target's first. The log counts, where it takes some, are fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vastmax import functional as F

K = 6
LOG_COUNT = torch.rand(1 + K, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log()


@dataclass(frozen=True)
class Loss:
    """A loss of logits (..., 1 + K), with the options that all of them take."""

    call: Callable[..., torch.Tensor]
    sampled: bool = True
    """Its candidates can be left out by `mask`."""
    dense: bool = True
    """Every logit has a part in it."""
    shifts: bool = False
    """It depends on how far the logits are from the target's, and is computed from that."""

    def __call__(self, logits: torch.Tensor, **options) -> torch.Tensor:
        return self.call(logits, **options)


def corrected(loss, *, shifts=False, **fixed):
    def call(logits, **options):
        log_count = LOG_COUNT[: logits.shape[-1]]
        target_log_count = log_count[0].expand(logits.shape[:-1])
        return loss(logits[..., 0], logits[..., 1:], target_log_count, log_count[1:], **fixed, **options)

    return Loss(call, shifts=shifts)


def uncorrected(loss, *, shifts=False, **fixed):
    return Loss(lambda logits, **options: loss(logits[..., 0], logits[..., 1:], **fixed, **options), shifts=shifts)


def weighted(logits, **options):
    """NCE by a proposal: each candidate with a weight of its own."""
    log_weight = LOG_COUNT.flip(0)[: logits.shape[-1] - 1]
    return corrected(F.nce_loss, sampled_log_weight=log_weight)(logits, **options)


def counted_pairs(logits, **options):
    log_count = LOG_COUNT[1 : logits.shape[-1]]
    return F.one_vs_each_loss(logits[..., 0], logits[..., 1:], sampled_log_count=log_count, **options)


def importance(logits, **options):
    log_count = LOG_COUNT[1 : logits.shape[-1]]
    return F.importance_sampled_softmax_loss(logits[..., 0], logits[..., 1:], log_count, **options)


def a_distribution(logits, **options):
    p = LOG_COUNT.softmax(-1).expand(logits.shape)
    return F.cross_entropy(logits, p, **options)


def divergence(logits, **options):
    return F.kl_divergence(logits, LOG_COUNT.softmax(-1).expand(logits.shape), **options)


def of_classes(loss, *, dense=True, **fixed):
    """A loss of all classes, of which the first is true."""

    def call(logits, **options):
        return loss(logits, torch.zeros(logits.shape[:-1], dtype=torch.int64), **fixed, **options)

    return Loss(call, sampled=False, dense=dense)


def to_a_distribution(logits, **options):
    return F.entmax_loss(logits, LOG_COUNT.softmax(-1).expand(logits.shape), 1.5, **options)


LOSSES = {
    "sampled_softmax": corrected(F.sampled_softmax_loss, shifts=True),
    "sampled_softmax, smoothed": corrected(F.sampled_softmax_loss, label_smoothing=0.2, num_classes=9, shifts=True),
    "nce": corrected(F.nce_loss),
    "nce, weighted": Loss(weighted),
    "negative_sampling": uncorrected(F.negative_sampling_loss),
    "negative_sampling, calibrated": uncorrected(F.negative_sampling_loss, positive_weight=0.3),
    "one_vs_each": uncorrected(F.one_vs_each_loss, shifts=True),
    "one_vs_each, sampled": Loss(counted_pairs, shifts=True),
    "importance_sampled_softmax": Loss(importance, shifts=True),
    "cross_entropy": of_classes(F.cross_entropy),
    "focal": of_classes(F.focal_loss, gamma=1.5),
    "logit_adjusted": of_classes(F.logit_adjusted_cross_entropy, log_prior=LOG_COUNT, tau=0.7),
    "topk_softmax": of_classes(F.topk_softmax_loss, k=3, dense=False),
    "sparsemax": of_classes(F.sparsemax_loss, dense=False),
    "entmax15": of_classes(F.entmax15_loss, dense=False),
    "entmax, alpha 1.2": of_classes(F.entmax_loss, alpha=1.2, dense=False),
    "entmax, alpha 3": of_classes(F.entmax_loss, alpha=3.0, dense=False),
    "entmax15, probabilities": Loss(to_a_distribution, sampled=False),
    "cross_entropy, probabilities": Loss(a_distribution, sampled=False),
    "kl_divergence": Loss(divergence, sampled=False),
}
