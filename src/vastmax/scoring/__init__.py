"""Scoring: hidden rows x class rows -> logits, with hand-written gradients."""

from vastmax.scoring.chosen_classes import chosen_logits
from vastmax.scoring.cross_entropy import linear_cross_entropy
from vastmax.scoring.every_class import LogPartition, linear_log_partition, linear_logits
from vastmax.scoring.loss_of_logits import linear_loss
from vastmax.scoring.soft_cross_entropy import linear_soft_cross_entropy
from vastmax.scoring.top import linear_topk

__all__ = [
    "LogPartition",
    "chosen_logits",
    "linear_cross_entropy",
    "linear_log_partition",
    "linear_logits",
    "linear_loss",
    "linear_soft_cross_entropy",
    "linear_topk",
]
