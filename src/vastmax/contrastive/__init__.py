"""Contrastive training with more negatives than a batch's memory would allow."""

from vastmax.contrastive.gradient_cache import cached_backward
from vastmax.contrastive.key_queue import KeyQueue
from vastmax.contrastive.momentum import momentum_encoder

__all__ = ["KeyQueue", "cached_backward", "momentum_encoder"]
