"""MixtureOfSoftmaxes against its formula, and what it costs in memory."""

import pytest
import torch
from largest_tensor import LargestTensor
from torch import nn

from vastmax import heads
from vastmax.scoring import blocks

V, D, M = 7, 4, 3


def build(num_mixtures=M, **options):
    torch.manual_seed(5)
    return heads.MixtureOfSoftmaxes(D, V, num_mixtures, dtype=torch.float64, **options)


def rows(*shape, dim=D):
    return torch.randn(
        *shape, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()


@pytest.mark.parametrize("class_features", [None, 2, 9])
def test_is_its_formula(class_features):
    """Yang et al.: the probabilities are added, not the logits; values and all gradients."""
    head = build(class_features=class_features, reduction="none")
    hidden, g = rows(6), torch.Generator().manual_seed(1)
    target = torch.randint(V, (6,), generator=g)
    share = (hidden @ head.gate.t()).softmax(-1)
    parts = (hidden @ head.projection.t()).tanh().view(6, M, -1)
    probability = (share.unsqueeze(-1) * (parts @ head.weight.t() + head.bias).softmax(-1)).sum(1)
    theirs = -probability[range(6), target].log()
    ours = head(hidden, target)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(head.log_prob(hidden), probability.log())
    upstream = torch.randn(6, generator=g, dtype=torch.float64)
    inputs = [hidden, *head.parameters()]
    assert len(inputs) == 5
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_a_mixture_of_one_is_the_softmax():
    one, softmax = build(1), heads.Softmax(D, V, dtype=torch.float64)
    softmax.load_state_dict(one.state_dict())
    nn.Linear(D, V, dtype=torch.float64).load_state_dict(one.state_dict())
    hidden, target = rows(2, 3), torch.randint(V, (2, 3), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(one(hidden, target), softmax(hidden, target))
    torch.testing.assert_close(one.log_prob(hidden), softmax.log_prob(hidden))
    torch.testing.assert_close(one.nll(hidden, target), softmax.nll(hidden, target))
    with pytest.raises(ValueError, match="class_features: expected in_features = 4 for a mixture of one, got 2"):
        build(1, class_features=2)


def test_components_far_apart_stay_finite():
    """A component that gives the target no chance leaves the loss to the others."""
    head = build(2, reduction="none")
    with torch.no_grad():
        head.weight[:, 0] = torch.arange(V) * 1e3
        head.bias.zero_()
        head.projection.zero_()
        head.projection[0, 0] = head.projection[D, 0] = 1e3
        head.projection[D, 0] = -1e3
        head.gate.zero_()
    hidden = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).expand(2, D)
    loss = head(hidden, torch.tensor([V - 1, 0]))
    torch.testing.assert_close(loss, torch.full((2,), 2.0, dtype=torch.float64).log())


def test_holds_no_tensor_of_all_logits(monkeypatch):
    block, n, num_classes = 1 << 12, 64, 1001
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    head = heads.MixtureOfSoftmaxes(8, num_classes, M)
    hidden, target = torch.randn(n, 8, requires_grad=True), torch.randint(num_classes, (n,))
    with LargestTensor() as made:
        head(hidden, target).backward()
        best = head.topk(hidden.detach(), 3)
    assert made.largest <= 2 * num_classes * 8 < n * num_classes  # the class rows are the largest
    torch.testing.assert_close(best.values, head.log_prob(hidden).topk(3).values)
