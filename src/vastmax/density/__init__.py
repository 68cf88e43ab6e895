"""Unnormalised densities of continuous data, fitted by noise-contrastive estimation."""

from vastmax.density.fitting import Fit, fit
from vastmax.density.models import ICA, UnnormalizedGaussian, UnnormalizedMixture
from vastmax.density.nce import NCE, NoiseSample
from vastmax.density.noise import gaussian_noise, mixture_noise, uniform_noise

__all__ = [
    "ICA",
    "NCE",
    "Fit",
    "NoiseSample",
    "UnnormalizedGaussian",
    "UnnormalizedMixture",
    "fit",
    "gaussian_noise",
    "mixture_noise",
    "uniform_noise",
]
