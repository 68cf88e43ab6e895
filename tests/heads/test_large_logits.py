"""Losses beside large logits and near 0: float32 is as exact there as torch's own log-softmax, or more so.

Log Z as one float32 number is not: beside logits of 1e8 its last digit is 8, and the loss of a probable class is
lost in it at any size.
"""

import functools
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from vastmax import functional, heads
from vastmax.kernels import use
from vastmax.scoring import linear_soft_cross_entropy

OFFSETS = [0.0, 1e2, 1e4, 1e6, 1e8]
LOSSES = [1e-1, 1e-3, 1e-5, 1e-7]
EPS = torch.finfo(torch.float32).eps
CLASSES = 9


def logits_of(offset, loss):
    """Float32 logits of which class 0 has about this loss, and the others share the rest unevenly."""
    others = torch.linspace(-3.0, 0.0, CLASSES - 1, dtype=torch.float64)
    first = others.logsumexp(0) - math.log(math.expm1(loss))
    return (offset + torch.cat([first.unsqueeze(0), others])).float()


def assert_as_exact(found, exact, theirs, floor=0.0):
    """Each number is off by no more than torch's is, or by what rounding logits that are 16 apart does to it."""
    error = (found.detach().double() - exact).abs()
    bound = torch.maximum((theirs.detach().double() - exact).abs(), 16 * EPS * exact.abs() + floor)
    assert (error <= bound).all(), (found, exact, theirs)


def with_probabilities(hidden, weight, target):
    share = one_hot(target, len(weight)).to(weight.dtype)
    return linear_soft_cross_entropy(hidden, weight, share).mean()


def with_shares(hidden, weight, target):
    share = torch.ones(len(target), 1, dtype=weight.dtype)
    return linear_soft_cross_entropy(hidden, weight, share, target.unsqueeze(-1)).mean()


def per_row(hidden, weight, target, **options):
    return functional.linear_cross_entropy(hidden, weight, target, reduction="none", **options).mean()


FUNCTIONS = {
    "mean": functional.linear_cross_entropy,
    "mean, in blocks": functools.partial(functional.linear_cross_entropy, block_size=4),
    "mean, filtered": functools.partial(functional.linear_cross_entropy, filter_eps=1e-12),
    "none": per_row,
    "none, in blocks": functools.partial(per_row, block_size=4),
    "probabilities": with_probabilities,
    "shares": with_shares,
}


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("loss", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_and_their_gradients(loss, offset, backend):
    for size in LOSSES:
        for label in (0, 1, CLASSES - 1):
            logits, target = logits_of(offset, size), torch.tensor([label])
            weight = logits.unsqueeze(-1).requires_grad_()
            dense, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
            with use(backend):
                found = loss(torch.ones(1, 1), weight, target)
                found.backward()
            theirs, right = cross_entropy(dense, target[0]), cross_entropy(exact, target[0])
            theirs.backward()
            right.backward()
            assert_as_exact(found, right, theirs)
            gradient = weight.grad.squeeze(-1)
            if loss in (with_probabilities, with_shares):  # a loss of several classes has p - t, as torch's has
                assert_as_exact(gradient, exact.grad, dense.grad, floor=EPS)
                assert gradient.sum().abs() <= 4 * EPS
            else:
                assert_as_exact(gradient, exact.grad, dense.grad)
                assert gradient.sum().abs() <= 16 * EPS * gradient.abs().sum()


@pytest.mark.parametrize("offset", OFFSETS)
def test_label_smoothing(offset):
    """No logit is subtracted from another row's or block's."""
    for size in LOSSES:
        logits, target = logits_of(offset, size), torch.tensor([0])
        weight = logits.unsqueeze(-1).requires_grad_()
        exact = logits.double().requires_grad_()
        for block_size in (None, 4):
            found = functional.linear_cross_entropy(
                torch.ones(1, 1), weight, target, label_smoothing=0.3, block_size=block_size
            )
            right = cross_entropy(exact, target[0], label_smoothing=0.3)
            torch.testing.assert_close(found.double(), right, rtol=16 * EPS, atol=0)
            (gradient,) = torch.autograd.grad(found, weight)
            (expected,) = torch.autograd.grad(right, exact)
            torch.testing.assert_close(gradient.squeeze(-1).double(), expected, rtol=0, atol=4 * EPS)


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_focal_term_of_a_probable_class(offset):
    """$(1 - p)^2 (-\\log p)$ of p near 1 is cubic in the little that is left."""
    for size in LOSSES[:3]:
        logits = logits_of(offset, size)
        found = functional.linear_cross_entropy(
            torch.ones(1, 1), logits.unsqueeze(-1), torch.tensor([0]), focal_gamma=2.0
        )
        nll = -logits.double().log_softmax(-1)[0]
        torch.testing.assert_close(found.double(), (-torch.expm1(-nll)).square() * nll, rtol=32 * EPS, atol=0)


def flat(build, **options):
    def head(logits):
        found = build(2, len(logits), bias=False, **options)
        with torch.no_grad():
            found.weight.zero_()[:, 0] = logits
        return found

    return head


def mixture(logits):
    found = heads.MixtureOfSoftmaxes(2, len(logits), 2, bias=False)
    with torch.no_grad():
        found.weight.zero_()[:, 0] = logits
        found.projection.zero_()[::2] = 100.0  # whose hyperbolic tangent is 1
    return found


def factored(logits):
    """One group of all classes: the group is certain."""
    found = heads.ClassFactoredSoftmax(2, torch.zeros(len(logits), dtype=torch.int64), bias=False)
    with torch.no_grad():
        found.weight.zero_()[:, 0] = logits
    return found


def adaptive(logits, in_features):
    """A shortlist of one class of no weight, beside a tail that holds the others and is chosen for sure."""
    found = heads.AdaptiveSoftmax(in_features, len(logits) + 1, [1], div_value=1.0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.zero_()
        found.head.weight[1, 0] = 1e3
        found.tail[0][0].weight[0, 0] = 1.0
        found.tail[0][1].weight[:, 0] = logits
    return found


def shortlist(logits):
    found = heads.AdaptiveSoftmax(2, len(logits) + 1, [len(logits)], div_value=1.0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.zero_()
        found.head.weight[:, 0] = torch.cat([logits, logits[:1] - 1e9])
    return found


HEADS = {
    "Softmax": flat(heads.Softmax),
    "Softmax, temperature": flat(heads.Softmax, temperature=0.5),
    "SampledSoftmax": flat(heads.SampledSoftmax),
    "OneVsEach": flat(heads.OneVsEach),
    "NCE": flat(heads.NCE),
    "MixtureOfSoftmaxes": mixture,
    "ClassFactoredSoftmax": factored,
    "AdaptiveSoftmax, shortlist": shortlist,
    "AdaptiveSoftmax, tail": functools.partial(adaptive, in_features=20),
    "AdaptiveSoftmax, narrow tail": functools.partial(adaptive, in_features=2),
}


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_nll_of_heads(head, offset, backend):
    for size in LOSSES:
        logits = logits_of(offset, size)
        built = head(logits)
        shift = built.num_classes - CLASSES if isinstance(built, heads.AdaptiveSoftmax) else 0
        first = 1 if shift and built.cutoffs == [1] else 0
        logits = logits / getattr(built, "temperature", 1.0)
        hidden = torch.zeros(CLASSES, built.in_features)
        hidden[:, 0] = 1.0
        target = torch.arange(CLASSES)
        with use(backend):
            nll = built.nll(hidden, target + first)
        theirs, right = (-x.log_softmax(-1) for x in (logits, logits.double()))
        assert_as_exact(nll, right, theirs)
        log_prob = built.log_prob(hidden[:1])[0, first : first + CLASSES]
        torch.testing.assert_close(-log_prob, theirs, rtol=4 * EPS, atol=EPS)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_sigsoftmax(offset):
    """Whose logits bend: where they are positive and large they are the scores, and where negative twice these."""
    for size in LOSSES:
        for sign in (1.0, -1.0):
            logits = logits_of(sign * offset, size)
            head = flat(heads.SigSoftmax)(logits)
            hidden = torch.tensor([[1.0, 0.0]]).expand(CLASSES, 2)
            bent = [x + torch.nn.functional.logsigmoid(x) for x in (logits, logits.float().double())]
            theirs, right = (-x.log_softmax(-1) for x in (bent[0], bent[0].double()))
            assert_as_exact(head.nll(hidden, torch.arange(CLASSES)), right, theirs)


def test_training_losses_of_heads_are_their_nll():
    logits = logits_of(1e6, 1e-3)
    for name in ("Softmax", "MixtureOfSoftmaxes", "ClassFactoredSoftmax", "AdaptiveSoftmax, narrow tail"):
        head = HEADS[name](logits)
        hidden = torch.zeros(CLASSES, head.in_features)
        hidden[:, 0] = 1.0
        target = torch.arange(CLASSES) + head.num_classes - CLASSES
        torch.testing.assert_close(head(hidden, target), head.nll(hidden, target).mean(), rtol=8 * EPS, atol=0)
