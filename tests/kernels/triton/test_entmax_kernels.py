"""Triton's entmax is the reference's."""

import pytest
import torch

from vastmax.kernels import reference, triton

ORDERS = [0.5, 1.0, 0.01, [0.5, 1.0, 0.2]]


def problem(device, num_classes, spread):
    logits = (spread * torch.randn(num_classes, 3, device=device)).t()
    logits[0, num_classes // 2 + 1 :] = -torch.inf
    return logits


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("num_classes", "spread"), [(1, 1.0), (7, 1.0), (1100, 0.01), (1500, 3.0)])
def test_entmax(device, num_classes, spread, order, log):
    logits = problem(device, num_classes, spread)
    order = torch.tensor(order, dtype=torch.float64, device=device).reshape(-1, 1)
    found = triton.entmax(logits, order, log=log)
    expected = reference.entmax(logits.double(), order, log=log)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6 if log else 1e-37)


def test_every_order_has_an_implementation(device):
    logits = problem(device, 20, 1.0)
    for order in (0.0, 1.5):
        order = torch.full((1, 1), order, dtype=torch.float64, device=device)
        assert triton.entmax(logits, order, log=False).equal(reference.entmax(logits, order, log=False))


def test_equal_logits_share(device):
    order = torch.full((1, 1), 0.5, dtype=torch.float64, device=device)
    found = triton.entmax(torch.zeros(2, 1000, device=device), order, log=False)
    torch.testing.assert_close(found, torch.full_like(found, 1e-3))


def test_no_rows(device):
    order = torch.full((1, 1), 0.5, dtype=torch.float64, device=device)
    assert triton.entmax(torch.zeros(0, 5, device=device), order, log=False).shape == (0, 5)
