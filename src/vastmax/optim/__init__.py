"""Optimizers that touch only the rows a step touched, and the gradient clipping that goes with them."""

from vastmax.optim.before_reading import catch_up_before_reading
from vastmax.optim.clip import clip_grad_norm_, clip_grad_value_
from vastmax.optim.in_backward import apply_in_backward
from vastmax.optim.lazy_adamw import LazyAdamW
from vastmax.optim.rowwise_adagrad import RowwiseAdagrad
from vastmax.optim.sgd import SGD

__all__ = [
    "SGD",
    "LazyAdamW",
    "RowwiseAdagrad",
    "apply_in_backward",
    "catch_up_before_reading",
    "clip_grad_norm_",
    "clip_grad_value_",
]
