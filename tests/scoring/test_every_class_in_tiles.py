"""The losses of every class where a kernel scores tile by tile: here the kernels' meaning takes its place."""

import pytest
import torch

from vastmax.functional import linear_cross_entropy, linear_log_partition
from vastmax.kernels import implementation, use
from vastmax.scoring import every_class

ROWS, CLASSES, FEATURES = 5, 11, 4


@pytest.fixture
def calls(monkeypatch):
    """Have the kernel's meaning called on the CPU, and note each call."""
    called = []

    def noted(kernel, *tensors):
        called.append(kernel)
        return implementation(kernel, *tensors)

    monkeypatch.setattr(every_class, "implementation", noted)
    monkeypatch.setattr(every_class, "has_kernel", lambda *_: True)
    return called


@pytest.fixture
def inputs():
    hidden = torch.randn(ROWS, FEATURES, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(CLASSES, FEATURES, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(CLASSES, dtype=torch.float64, requires_grad=True)
    return hidden, weight, bias


def cross_entropy_of(inputs, upstream, **options):
    hidden, weight, bias = inputs
    target = torch.tensor([0, 10, -100, 3, 3])
    loss = linear_cross_entropy(hidden, weight, target, linear_bias=bias, **options)
    return loss, *torch.autograd.grad(loss, inputs, upstream)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 2.0}, {"z_loss": 0.3, "focal_gamma": 2.0, "weight": torch.rand(CLASSES).double()}]
)
def test_cross_entropy(inputs, calls, reduction, options):
    upstream = torch.randn(ROWS if reduction == "none" else (), dtype=torch.float64)
    tiled = cross_entropy_of(inputs, upstream, reduction=reduction, **options)
    assert calls == ["split_partition", "split_partition_backward"]
    every_class.has_kernel = lambda *_: False
    for mine, expected in zip(
        tiled, cross_entropy_of(inputs, upstream, reduction=reduction, **options), strict=True
    ):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 2.0}, {"label_smoothing": 0.1}, {"logit_adjustment": torch.zeros(CLASSES)}, {"block_size": 3}],
)
def test_what_the_kernel_does_not_know_goes_block_by_block(inputs, calls, options):
    cross_entropy_of(inputs, torch.randn((), dtype=torch.float64), **options)
    assert calls == []


def test_log_partition_and_masked_classes(inputs, calls):
    hidden, weight, _ = inputs
    bias = torch.zeros(CLASSES, dtype=torch.float64)
    bias[4] = -torch.inf
    found = linear_log_partition(hidden, weight, torch.arange(ROWS) % 4, linear_bias=bias)
    logits = hidden @ weight.t() + bias
    torch.testing.assert_close(found.log_partition, logits.logsumexp(-1))
    torch.testing.assert_close(found.target_logit, logits[range(ROWS), torch.arange(ROWS) % 4])
    assert calls == ["split_partition"]


def test_on_a_cpu_there_is_no_such_kernel(inputs):
    for backend in ("auto", "torch", "numba", "triton"):
        with use(backend):
            assert not every_class.has_kernel("split_partition", *inputs)
