"""Batches for samplers that depend on one."""

from typing import Any

import torch
from sampler_laws import seeded
from torch import Tensor

from vastmax.samplers import Batch, Sampler


def logits_of(batch: Batch) -> Tensor:
    return torch.nn.functional.linear(batch.hidden, batch.linear_weight, batch.linear_bias)


def make_batch(
    num_classes: int, rows: int = 3, in_features: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Batch:
    g = seeded(seed)
    options: Any = {"generator": g, "dtype": dtype}
    hidden = torch.randn(rows, in_features, **options) + 0.3
    weight = 0.7 * torch.randn(num_classes, in_features, **options)
    bias = torch.randn(num_classes, **options)
    return Batch(hidden, torch.randint(num_classes, (rows,), generator=g), weight, bias)


def every_class(noise: Sampler, rows: int, shared: bool) -> Tensor:
    """q of every class: (V,) if shared, else (rows, V)."""
    ids = torch.arange(noise.num_classes)
    return noise.log_prob(ids if shared else ids.expand(rows, -1)).exp()
