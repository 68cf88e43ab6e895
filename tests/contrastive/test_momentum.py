"""The encoder that follows another."""

import pytest
import torch
from torch import nn

from vastmax.contrastive.momentum import momentum_encoder


def test_parameters_follow_slowly_and_buffers_at_once():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = momentum_encoder(encoder, 0.9)
    expected = [p.detach().clone() for p in encoder.parameters()]
    for _ in range(3):
        encoder(torch.randn(4, 3))
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += torch.randn_like(parameter)
        expected = [0.9 * e + 0.1 * p.detach() for e, p in zip(expected, encoder.parameters(), strict=True)]
        average.update_parameters(encoder)
        for mine, other in zip(average.module.parameters(), expected, strict=True):
            torch.testing.assert_close(mine, other)
    for mine, other in zip(average.module.buffers(), encoder.buffers(), strict=True):
        assert torch.equal(mine, other)


def test_it_has_no_gradient_and_is_a_copy():
    encoder = nn.Linear(3, 2)
    average = momentum_encoder(encoder)
    assert not average(torch.ones(1, 3)).requires_grad
    assert not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in encoder.parameters())
    with torch.no_grad():
        encoder.weight.zero_()
    assert average.module.weight.abs().max() > 0


def test_state_dict_restores_the_average():
    encoder = nn.Linear(3, 2)
    average, other = momentum_encoder(encoder, 0.5), momentum_encoder(nn.Linear(3, 2), 0.5)
    other.load_state_dict(average.state_dict())
    for each in (average, other):
        each.update_parameters(nn.Linear(3, 2).requires_grad_(False).apply(lambda m: m.weight.fill_(2.0)))
    torch.testing.assert_close(average.module.weight, other.module.weight)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, torch.nan])
def test_momentum_out_of_range(momentum):
    with pytest.raises(ValueError, match="momentum: expected a finite number of at least 0 and less than 1"):
        momentum_encoder(nn.Linear(1, 1), momentum)


def test_encoder_that_is_no_module():
    with pytest.raises(TypeError, match=r"encoder: expected a torch.nn.Module, got function"):
        momentum_encoder(lambda x: x)
