"""Pure mathematics on logits: no state, no sampling. Per row unless reduced, by the one helper `reduce_rows`."""

from vastmax.functional.candidates import effective_sample_size, log_partition_estimate
from vastmax.functional.sampled import (
    importance_sampled_softmax_loss,
    nce_loss,
    negative_sampling_loss,
    one_vs_each_loss,
    sampled_softmax_loss,
)
from vastmax.functional.softmax import cross_entropy, entropy, hardmax, kl_divergence, log_softmax, softmax
from vastmax.reduction import reduce_rows
from vastmax.scoring import linear_cross_entropy, linear_log_partition, linear_topk

__all__ = [
    "cross_entropy",
    "effective_sample_size",
    "entropy",
    "hardmax",
    "importance_sampled_softmax_loss",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_log_partition",
    "linear_topk",
    "log_partition_estimate",
    "log_softmax",
    "nce_loss",
    "negative_sampling_loss",
    "one_vs_each_loss",
    "reduce_rows",
    "sampled_softmax_loss",
    "softmax",
]
