"""What arithmetic a device has: products without autocast, and the widest floating-point numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within it autocast leaves the dtypes of operators alone, on a device that has autocast."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
