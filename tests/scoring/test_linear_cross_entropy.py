"""linear_cross_entropy and linear_log_partition against torch, which forms every logit."""

import itertools

import pytest
import torch
from linear_problems import V, assert_same, by_the_equation, problem, torch_cross_entropy
from torch.nn import functional

from vastmax.scoring import blocks, linear_cross_entropy, linear_log_partition


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("block_size", [*range(1, V + 1), 10 * V, None])
def test_equals_torch_for_every_block_size(block_size, reduction):
    hidden, weight, bias, target, g = problem()
    target[2] = -100
    ours = linear_cross_entropy(
        hidden, weight, target, linear_bias=bias, reduction=reduction, block_size=block_size
    )
    theirs = torch_cross_entropy(hidden, weight, target, bias, reduction=reduction)
    assert_same(ours, theirs, (hidden, weight, bias), g)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("limits", [(12, 12, 1), (5, 5, 1), (30, 8, 2), (30, 30, 2), (1 << 24, 1 << 22, 64)])
@pytest.mark.parametrize("rows", [(), (1,), (9,), (3, 4), (2, 2, 3)])
def test_equals_torch_however_rows_are_cut(rows, limits, reduction, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", limits[0])
    monkeypatch.setattr(blocks, "TILE_ELEMENTS", limits[1])
    monkeypatch.setattr(blocks, "CUT_ELEMENTS", limits[1])
    monkeypatch.setattr(blocks, "MIN_ROWS", limits[2])
    hidden, weight, bias, target, g = problem(rows)
    ours = linear_cross_entropy(hidden, weight, target, linear_bias=bias, reduction=reduction)
    theirs = torch_cross_entropy(hidden, weight, target, bias, reduction=reduction)
    assert_same(ours, theirs, (hidden, weight, bias), g)


OPTIONS = {
    "class_weight": {"weight": torch.rand(V, dtype=torch.float64)},
    "smoothing": {"label_smoothing": 0.3},
    "all_smoothing": {"label_smoothing": 1.0},
    "weighted_smoothing": {"weight": torch.rand(V, dtype=torch.float64), "label_smoothing": 0.3},
    "ignore_index": {"ignore_index": 3},
}


@pytest.mark.parametrize("block_size", [4, V])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_shared_with_torch(options, reduction, block_size):
    hidden, weight, bias, target, g = problem((8,))
    target[:2] = 3
    ours = linear_cross_entropy(
        hidden, weight, target, linear_bias=bias, reduction=reduction, block_size=block_size, **options
    )
    theirs = torch_cross_entropy(hidden, weight, target, bias, reduction=reduction, **options)
    assert_same(ours, theirs, (hidden, weight, bias), g)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("block_size", [3, V])
@pytest.mark.parametrize(
    ("temperature", "softcap", "z_loss", "smoothing", "gamma"),
    list(itertools.product([1.0, 0.4], [None, 1.5], [0.0, 0.2], [0.0, 0.1], [0.0, 0.5, 2.0])),
)
def test_every_option_together(temperature, softcap, z_loss, smoothing, gamma, block_size, reduction):
    hidden, weight, bias, target, g = problem()
    class_weight, w = torch.rand(V, generator=g).double(), torch.rand(7, generator=g).double()
    ours = linear_cross_entropy(
        hidden,
        weight,
        target,
        linear_bias=bias,
        weight=class_weight,
        sample_weight=w,
        reduction=reduction,
        label_smoothing=smoothing,
        temperature=temperature,
        z_loss=z_loss,
        softcap=softcap,
        focal_gamma=gamma,
        block_size=block_size,
    )
    theirs = by_the_equation(
        hidden,
        weight,
        target,
        bias,
        temperature=temperature,
        softcap=softcap,
        z_loss=z_loss,
        smoothing=smoothing,
        gamma=gamma,
        class_weight=class_weight,
        w=w,
    )[reduction]
    assert_same(ours, theirs, (hidden, weight, bias), g)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("block_size", [1, 4, V])
def test_gradcheck(block_size, reduction):
    hidden, weight, bias, target, _ = problem((4,))

    def loss(hidden, weight, bias):
        return linear_cross_entropy(
            hidden,
            weight,
            target,
            linear_bias=bias,
            reduction=reduction,
            block_size=block_size,
            z_loss=0.1,
            softcap=4.0,
        )

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


@pytest.mark.parametrize("block_size", [1, 4, V])
def test_log_partition_gradcheck_and_value(block_size):
    hidden, weight, bias, target, _ = problem((2, 3))
    log_z, target_logit = linear_log_partition(hidden, weight, target, linear_bias=bias, block_size=block_size)
    logits = functional.linear(hidden, weight, bias)
    torch.testing.assert_close(log_z, logits.logsumexp(-1))
    torch.testing.assert_close(target_logit, logits.gather(-1, target.unsqueeze(-1)).squeeze(-1))
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_log_partition(h, w, target, linear_bias=b, block_size=block_size),
        (hidden, weight, bias),
    )
    assert linear_log_partition(hidden, weight).target_logit is None


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias", "hidden weight", "weight bias"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_frozen_inputs(frozen, reduction):
    hidden, weight, bias, target, g = problem()
    for name, tensor in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        tensor.requires_grad_(name not in frozen.split())
    ours = linear_cross_entropy(hidden, weight, target, linear_bias=bias, reduction=reduction)
    theirs = torch_cross_entropy(hidden, weight, target, bias, reduction=reduction)
    assert_same(ours, theirs, (hidden, weight, bias), g)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_gradients_of_weights_when_they_ask_for_one(gamma, smoothing, reduction):
    hidden, weight, bias, target, g = problem()
    class_weight = torch.rand(V, generator=g).double().requires_grad_()
    w = torch.rand(7, generator=g).double().requires_grad_()
    ours = linear_cross_entropy(
        hidden,
        weight,
        target,
        linear_bias=bias,
        weight=class_weight,
        sample_weight=w,
        reduction=reduction,
        label_smoothing=smoothing,
        focal_gamma=gamma,
    )
    theirs = by_the_equation(
        hidden,
        weight,
        target,
        bias,
        temperature=1.0,
        softcap=None,
        z_loss=0.0,
        smoothing=smoothing,
        gamma=gamma,
        class_weight=class_weight,
        w=w,
    )[reduction]
    assert_same(ours, theirs, (hidden, weight, bias, class_weight, w), g)


def test_non_contiguous_tensors():
    hidden, weight, bias, target, g = problem((7,))
    hidden_t = hidden.detach().t().contiguous().t().requires_grad_()
    weight_t = weight.detach().t().contiguous().t().requires_grad_()
    doubled = target.repeat_interleave(2)[::2]
    assert not hidden_t.is_contiguous()
    assert not weight_t.is_contiguous()
    assert not doubled.is_contiguous()
    ours = linear_cross_entropy(hidden_t, weight_t, doubled, linear_bias=bias, reduction="none")
    theirs = torch_cross_entropy(hidden_t, weight_t, doubled, bias, reduction="none")
    assert_same(ours, theirs, (hidden_t, weight_t, bias), g)
