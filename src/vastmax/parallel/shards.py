"""Heads whose parameters are spread over processes by `torch.distributed.fsdp`."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from vastmax.heads.base import Head
from vastmax.heads.info_nce import InfoNCE
from vastmax.validation import shown

Model = TypeVar("Model", bound=nn.Module)

METHODS = ("nll", "log_prob", "topk", "log_partition")
"""What is asked of a head beside its loss, and needs its parameters whole."""


def fully_shard(model: Model, **options: Any) -> Model:
    """Shard a model and each of its heads by `torch.distributed.fsdp.fully_shard`, such that all of a head works.

    That function lets the forward have its parameters whole, and nothing else. Here every head is sharded by
    itself, and `nll`, `log_prob`, `topk` and `log_partition` have them whole too. Parameters of no axis, which FSDP
    does not take, such as a learned temperature, become vectors of one element; a state dict of those can be loaded
    into a head that has the number. A parameter that some process does not use, as a tail of `AdaptiveSoftmax`,
    has a gradient of zeros there, and in all of them too. Biases are set (`start_at`), and the number of classes
    changed (`resize`), before.

    Args:
        model: a head, or a module with heads among its parts, some of which may be sharded already. It is changed
            in place.
        **options: those of torch's function, for the heads and the model alike.

    Returns:
        The model.

    Raises:
        TypeError: what is given is no module.
        ValueError: a head with `sparse=True`: FSDP reduces dense gradients only.

    Example:
        >>> import torch.distributed as dist
        >>> from vastmax.heads import Softmax
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> mesh = dist.init_device_mesh("cpu", (1,))
        >>> head = fully_shard(Softmax(4, 100), mesh=mesh)
        >>> type(head.weight.data).__name__
        'DTensor'
        >>> dist.destroy_process_group()
    """
    # Imported here: it takes as long as all the rest of the package.
    from torch.distributed import fsdp

    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    heads = [part for part in model.modules() if isinstance(part, Head | InfoNCE)]
    for head in heads:
        if getattr(head, "sparse", False):
            raise ValueError(
                f"model: expected heads with dense gradients, which FSDP reduces, got sparse=True in "
                f"{shown(head)}: leave it out, or replicate the model and call reduce_rows"
            )
    for head in heads:
        _give_axes(head)
        if not hasattr(fsdp.FSDPModule, "set_reduce_scatter_unused_params"):
            head.register_forward_hook(_use_all)
        if head is not model and not isinstance(head, fsdp.FSDPModule):
            fsdp.fully_shard(head, **options)
    fsdp.fully_shard(model, **options)
    for head in heads:
        for method in METHODS:
            if hasattr(head, method):
                fsdp.register_fsdp_forward_method(head, method)
        reduce_unused = getattr(head, "set_reduce_scatter_unused_params", None)
        if reduce_unused is not None:
            reduce_unused(True)
    return model


def _give_axes(head: nn.Module) -> None:
    """Make vectors of the parameters that are numbers."""
    for part in head.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                vector = nn.Parameter(parameter.detach().reshape(1), requires_grad=parameter.requires_grad)
                setattr(part, name, vector)


def _use_all(head: nn.Module, _: Any, loss: Tensor) -> Tensor:
    """Give every parameter a gradient, 0 where it has none: all processes have to have those of the same ones."""
    return loss + sum(x.reshape(-1)[:0].sum() for x in head.parameters() if x.requires_grad)
