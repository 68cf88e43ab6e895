"""Metrics of output layers that torchmetrics does not have; each is updated batch by batch."""

from vastmax.metrics.partition import PartitionSpread
from vastmax.metrics.perplexity import Perplexity

__all__ = ["PartitionSpread", "Perplexity"]
