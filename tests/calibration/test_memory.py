"""Fitting to a linear layer holds no N x V tensor."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vastmax.calibration import TemperatureScaling, VectorScaling
from vastmax.scoring import blocks


class Largest(TorchDispatchMode):
    """`elements` of the largest tensor made so far."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("scaling", [TemperatureScaling(), VectorScaling(200)], ids=lambda s: type(s).__name__)
def test_the_largest_tensor_is_a_block(scaling, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 4000)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 4, generator=generator) for n in (300, 200))
    target = (hidden @ weight.T / 2).softmax(-1).multinomial(1, generator=generator).squeeze(-1)
    with Largest() as largest:
        scaling.fit_linear(hidden, weight, target)
    assert 200 <= largest.elements <= 4096 < 300 * 200
