"""Output layers: parameters + sampler + scoring + loss, behind one interface."""

from vastmax.heads.base import FlatHead, Head
from vastmax.heads.sampled import NCE, NegativeSampling, SampledHead, SampledSoftmax
from vastmax.heads.softmax import Softmax

__all__ = ["NCE", "FlatHead", "Head", "NegativeSampling", "SampledHead", "SampledSoftmax", "Softmax"]
