"""Optimizers that touch only the rows a step touched, and the gradient clipping that goes with them."""

from vastmax.optim.clip import clip_grad_norm_
from vastmax.optim.lazy_adamw import LazyAdamW
from vastmax.optim.rowwise_adagrad import RowwiseAdagrad

__all__ = ["LazyAdamW", "RowwiseAdagrad", "clip_grad_norm_"]
