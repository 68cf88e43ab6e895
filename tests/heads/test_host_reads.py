"""No step of a head makes the program wait for an accelerator: on a device that only has shapes, reads raise."""

import pytest
import torch

from tests.devices import SHAPES, shapes_alone, without_values
from tests.heads.conformance import CASES, D


@pytest.mark.parametrize("name", CASES)
def test_a_step_reads_no_value(name):
    head = CASES[name].make()
    with shapes_alone():
        head = without_values(head)
        hidden = torch.empty(6, D, device=SHAPES, dtype=torch.float64, requires_grad=True)
        target = torch.empty(6, dtype=torch.int64, device=SHAPES)
        head(hidden, target, sample_weight=torch.empty(6, device=SHAPES)).backward()
        assert hidden.grad.device.type == SHAPES
        head.nll(hidden, target)
        head.log_prob(hidden)
