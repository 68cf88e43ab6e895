"""Gradient scaling, as torch does it, around sparse gradients."""

import math

import pytest
import torch
from row_gradients import OPTIMIZERS, sparse
from torch import nn
from torch.testing import assert_close

from vastmax.optim import clip_grad_norm_

pytestmark = pytest.mark.parametrize("optimizer_class", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
SCALE = 1024.0


def model(optimizer_class):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Embedding(8, 3, sparse=True), nn.Linear(3, 4))
    return layers, optimizer_class(layers.parameters(), lr=0.1)


def loss(layers):
    return layers(torch.tensor([1, 5, 5, 2, 1])).square().sum()


@pytest.mark.parametrize("clip", [None, 0.5])
def test_scaled_steps_are_the_steps_without_a_scale(optimizer_class, clip):
    plain, optimizer = model(optimizer_class)
    scaled, of_scaled = model(optimizer_class)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for _ in range(3):
        optimizer.zero_grad()
        loss(plain).backward()
        of_scaled.zero_grad()
        scaler.scale(loss(scaled)).backward()
        assert not scaled[0].weight.grad.is_coalesced()  # repeated ids, each entry scaled
        if clip is not None:
            scaler.unscale_(of_scaled)
            norms = [clip_grad_norm_(layers.parameters(), clip) for layers in (plain, scaled)]
            assert norms[0] > clip
            assert_close(*norms)
        optimizer.step()
        scaler.step(of_scaled)
        scaler.update()
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(a, b)  # the scale is a power of two


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("coalesced", [True, False])
def test_a_sparse_gradient_that_is_not_finite_skips_the_step(optimizer_class, coalesced, bad):
    layers, optimizer = model(optimizer_class)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    scaler.scale(loss(layers)).backward()
    values = torch.tensor([[1.0, bad, 1.0], [1.0, 1.0, 1.0]])
    grad = sparse([4, 4] if not coalesced else [4, 6], values, 8)
    layers[0].weight.grad = grad.coalesce() if coalesced else grad
    before = [param.detach().clone() for param in layers.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == SCALE / 2
    assert not optimizer.state
    for param, old in zip(layers.parameters(), before, strict=True):
        assert torch.equal(param, old)
