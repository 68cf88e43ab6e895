"""Metrics of output layers that torchmetrics does not have, or has only for N x V probabilities."""

from vastmax.metrics.cross_entropy_split import CrossEntropyParts, CrossEntropySplit
from vastmax.metrics.log_prob_rank import log_prob_rank, log_prob_spectrum
from vastmax.metrics.partition import PartitionSpread
from vastmax.metrics.perplexity import Perplexity
from vastmax.metrics.ranking import Ranking, RankingScores

__all__ = [
    "CrossEntropyParts",
    "CrossEntropySplit",
    "PartitionSpread",
    "Perplexity",
    "Ranking",
    "RankingScores",
    "log_prob_rank",
    "log_prob_spectrum",
]
