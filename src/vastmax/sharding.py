"""Tensors that are spread over processes."""

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor; without the import of those, which takes long."""
    return hasattr(tensor, "device_mesh")
