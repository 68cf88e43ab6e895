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

TYPE_CHECKING = False  # typing's own takes longer to import than all else that the command needs to answer Ctrl-C
if TYPE_CHECKING:
    from vastmax import (
        calibration,
        contrastive,
        density,
        functional,
        heads,
        kernels,
        metrics,
        optim,
        parallel,
        samplers,
        scoring,
        trees,
    )
    from vastmax.checking import checks

    __version__: str

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
    "parallel",
    "samplers",
    "scoring",
    "trees",
]


def __getattr__(name: str) -> object:
    """Import a part when it is first named: the command has to answer Ctrl-C before torch is there."""
    if name in __all__:
        from importlib import import_module

        return import_module("vastmax.checking").checks if name == "checks" else import_module(f"vastmax.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("vastmax")
    raise AttributeError(f"module 'vastmax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
