"""Noise distributions: draws, log-probabilities, and what a draw's expected count is."""

from vastmax.samplers.base import Candidates, Sampler
from vastmax.samplers.log_uniform import LogUniform
from vastmax.samplers.mixture import Mixture
from vastmax.samplers.uniform import Uniform
from vastmax.samplers.unigram import Unigram

__all__ = ["Candidates", "LogUniform", "Mixture", "Sampler", "Uniform", "Unigram"]
