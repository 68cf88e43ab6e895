"""Heads: modules that turn hidden rows and targets into a training loss, and know their exact probabilities."""

from vastmax.heads.adaptive import AdaptiveSoftmax
from vastmax.heads.base import Head
from vastmax.heads.class_factored import ClassFactoredSoftmax
from vastmax.heads.clusters import frequency_clusters, sqrt_clusters
from vastmax.heads.cutoffs import adaptive_cost, adaptive_cutoffs
from vastmax.heads.entmax import Entmax
from vastmax.heads.flat import FlatHead
from vastmax.heads.hierarchical import HierarchicalSoftmax
from vastmax.heads.info_nce import InfoNCE
from vastmax.heads.mixture import MixtureOfSoftmaxes
from vastmax.heads.nce import NCE
from vastmax.heads.negative_sampling import NegativeSampling, OneVsEach
from vastmax.heads.one_vs_all import OneVsAll
from vastmax.heads.sampled_head import SampledHead, Scores
from vastmax.heads.sampled_softmax import ImportanceSampledSoftmax, SampledSoftmax
from vastmax.heads.sigsoftmax import SigSoftmax
from vastmax.heads.softmax import Softmax
from vastmax.heads.topk_softmax import TopKSoftmax

__all__ = [
    "NCE",
    "AdaptiveSoftmax",
    "ClassFactoredSoftmax",
    "Entmax",
    "FlatHead",
    "Head",
    "HierarchicalSoftmax",
    "ImportanceSampledSoftmax",
    "InfoNCE",
    "MixtureOfSoftmaxes",
    "NegativeSampling",
    "OneVsAll",
    "OneVsEach",
    "SampledHead",
    "SampledSoftmax",
    "Scores",
    "SigSoftmax",
    "Softmax",
    "TopKSoftmax",
    "adaptive_cost",
    "adaptive_cutoffs",
    "frequency_clusters",
    "sqrt_clusters",
]
