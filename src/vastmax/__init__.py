"""Output layers for a vast number of classes: exact, sampled and hierarchical, behind one interface.

Example:
    >>> import torch
    >>> from vastmax import heads, optim, samplers
    >>> noise = samplers.Unigram(torch.arange(10_000, 0, -1))
    >>> head = heads.SampledSoftmax(64, 10_000, sampler=noise, num_samples=256, sparse=True)
    >>> optimizer = optim.LazyAdamW(head.parameters())
    >>> hidden, target = torch.randn(32, 64), torch.randint(10_000, (32,))
    >>> head(hidden, target).backward()
    >>> optimizer.step()
    >>> head.nll(hidden, target).shape  # exact, whatever the head was trained with
    torch.Size([32])
"""

from importlib.metadata import version

from vastmax import (
    calibration,
    contrastive,
    density,
    functional,
    heads,
    kernels,
    metrics,
    optim,
    samplers,
    scoring,
    trees,
)
from vastmax.checking import checks

__version__ = version("vastmax")
__all__ = [
    "calibration",
    "checks",
    "contrastive",
    "density",
    "functional",
    "heads",
    "kernels",
    "metrics",
    "optim",
    "samplers",
    "scoring",
    "trees",
]
