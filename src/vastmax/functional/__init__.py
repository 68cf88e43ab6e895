"""Pure mathematics on logits: no state, no sampling. Per row unless reduced, by the one helper `reduce_rows`."""

from vastmax.functional.candidates import effective_sample_size, log_partition_estimate
from vastmax.functional.contrastive import clip_loss, info_nce, siglip_loss
from vastmax.functional.entmax import entmax, entmax15, log_entmax, sparsemax, topk_softmax
from vastmax.functional.imbalance import (
    effective_number_weight,
    focal_loss,
    inverse_frequency_weight,
    log_prior,
    logit_adjusted_cross_entropy,
)
from vastmax.functional.sampled import (
    importance_sampled_softmax_loss,
    nce_loss,
    negative_sampling_loss,
    one_vs_each_loss,
    sampled_softmax_loss,
)
from vastmax.functional.softmax import cross_entropy, entropy, hardmax, kl_divergence, log_softmax, softmax
from vastmax.functional.sparse import entmax15_loss, entmax_loss, sparsemax_loss, topk_softmax_loss
from vastmax.reduction import reduce_rows
from vastmax.scoring import linear_cross_entropy, linear_log_partition, linear_topk

__all__ = [
    "clip_loss",
    "cross_entropy",
    "effective_number_weight",
    "effective_sample_size",
    "entmax",
    "entmax15",
    "entmax15_loss",
    "entmax_loss",
    "entropy",
    "focal_loss",
    "hardmax",
    "importance_sampled_softmax_loss",
    "info_nce",
    "inverse_frequency_weight",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_log_partition",
    "linear_topk",
    "log_entmax",
    "log_partition_estimate",
    "log_prior",
    "log_softmax",
    "logit_adjusted_cross_entropy",
    "nce_loss",
    "negative_sampling_loss",
    "one_vs_each_loss",
    "reduce_rows",
    "sampled_softmax_loss",
    "siglip_loss",
    "softmax",
    "sparsemax",
    "sparsemax_loss",
    "topk_softmax",
    "topk_softmax_loss",
]
