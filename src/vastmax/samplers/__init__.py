"""Noise distributions: draws, log-probabilities, and what a draw's expected count is."""

from vastmax.samplers.base import Batch, Candidates, Sampler
from vastmax.samplers.conditional import ConditionalSampler
from vastmax.samplers.hard_negatives import HardNegatives
from vastmax.samplers.in_batch import InBatch
from vastmax.samplers.log_uniform import LogUniform
from vastmax.samplers.mixture import Mixture
from vastmax.samplers.random_features import RandomFeatures
from vastmax.samplers.top_and_tail import TopAndTail
from vastmax.samplers.tree_guided import TreeGuided
from vastmax.samplers.uniform import Uniform
from vastmax.samplers.unigram import Unigram

__all__ = [
    "Batch",
    "Candidates",
    "ConditionalSampler",
    "HardNegatives",
    "InBatch",
    "LogUniform",
    "Mixture",
    "RandomFeatures",
    "Sampler",
    "TopAndTail",
    "TreeGuided",
    "Uniform",
    "Unigram",
]
