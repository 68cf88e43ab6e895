"""The precision that losses are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return half precision as float32, and anything wider as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
