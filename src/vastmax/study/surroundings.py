"""What figures hold for: the version and the machine."""

from __future__ import annotations

import platform
from typing import Any

import torch

from vastmax import __version__


def surroundings() -> dict[str, Any]:
    """Say which version of vastmax made the figures beside it, and on which machine."""
    return {"vastmax": __version__, "machine": machine()}


def machine() -> dict[str, Any]:
    """Describe the machine that the figures hold for."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
