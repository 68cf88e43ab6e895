"""Heads: modules that turn hidden rows and targets into a training loss, and know their exact probabilities."""

from vastmax.heads.base import FlatHead, Head
from vastmax.heads.hierarchical import HierarchicalSoftmax
from vastmax.heads.nce import NCE
from vastmax.heads.negative_sampling import NegativeSampling, OneVsEach
from vastmax.heads.sampled_head import SampledHead, Scores
from vastmax.heads.sampled_softmax import ImportanceSampledSoftmax, SampledSoftmax
from vastmax.heads.softmax import Softmax

__all__ = [
    "NCE",
    "FlatHead",
    "Head",
    "HierarchicalSoftmax",
    "ImportanceSampledSoftmax",
    "NegativeSampling",
    "OneVsEach",
    "SampledHead",
    "SampledSoftmax",
    "Scores",
    "Softmax",
]
