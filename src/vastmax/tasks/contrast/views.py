"""Random views of small images: what a contrastive loss is to see through."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.tasks.contrast.config import ContrastConfig

SHIFTS = 3
"""An image is moved by -1, 0 or 1 pixel either way."""


def view(images: Tensor, config: ContrastConfig, draw: torch.Generator) -> Tensor:
    """Return images (N, F) moved by up to a pixel either way, made brighter or darker, and noisy: (N, F).

    Args:
        images: (N, F) square images, F a square number, pixels in [0, 1].
        config: how noisy and how bright.
        draw: what the view is drawn from.
    """
    rows, features = images.shape
    side = round(features**0.5)
    patches = functional.unfold(images.view(rows, 1, side, side), kernel_size=side, padding=1)
    place = torch.randint(SHIFTS * SHIFTS, (rows,), generator=draw)
    moved = patches[torch.arange(rows), :, place]
    factor = 1 + config.brightness * (2 * torch.rand(rows, 1, generator=draw) - 1)
    return factor * moved + config.noise * torch.randn(rows, features, generator=draw)
