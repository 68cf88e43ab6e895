"""Losses beside large logits and near 0: float32 is as exact there as torch's own log-softmax, or more so.

Log Z as one float32 number is not: beside logits of 1e8 its last digit is 8, and the loss of a probable class is
lost in it at any size.
"""

import functools

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from benchmarks.precision import (
    CLASSES,
    HEADS,
    LOSS_TABLE,
    LOSSES,
    OFFSETS,
    flat,
    hidden,
    logits_of,
    softmax_logits,
)
from vastmax import functional, heads
from vastmax.kernels import use
from vastmax.scoring import linear_soft_cross_entropy

EPS = torch.finfo(torch.float32).eps


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


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_nll_of_heads(head, offset, backend):
    for size in LOSSES:
        logits = logits_of(offset, size)
        built = head(logits)
        first = 1 if isinstance(built, heads.AdaptiveSoftmax) and built.cutoffs == [1] else 0
        rows = hidden(CLASSES, built.in_features)
        with use(backend):
            nll = built.nll(rows, torch.arange(CLASSES) + first)
        theirs, right = (-x.log_softmax(-1) for x in (logits, logits.double()))
        assert_as_exact(nll, right, theirs)
        log_prob = built.log_prob(rows[:1])[0, first : first + CLASSES]
        # Half of EPS each for a sum near 1, its logarithm and a share; torch's own is as far off, here or there.
        for found in (-log_prob, theirs):
            torch.testing.assert_close(found.double(), right, rtol=4 * EPS, atol=1.5 * EPS)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", LOSS_TABLE)
def test_every_loss_of_the_table(name, offset):
    for size in LOSSES:
        logits = logits_of(offset, size)
        theirs, right = (-softmax_logits(name, x).log_softmax(-1)[0] for x in (logits, logits.double()))
        assert_as_exact(LOSS_TABLE[name](logits), right, theirs)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_sigsoftmax(offset):
    """Whose logits bend: where they are positive and large they are the scores, and where negative twice these."""
    for size in LOSSES:
        for sign in (1.0, -1.0):
            logits = logits_of(sign * offset, size)
            head = flat(heads.SigSoftmax)(logits)
            bent = logits + torch.nn.functional.logsigmoid(logits)
            theirs, right = (-x.log_softmax(-1) for x in (bent, bent.double()))
            assert_as_exact(head.nll(hidden(CLASSES), torch.arange(CLASSES)), right, theirs)


def test_training_losses_of_heads_are_their_nll():
    logits = logits_of(1e6, 1e-3)
    for name in ("Softmax", "MixtureOfSoftmaxes", "ClassFactoredSoftmax", "AdaptiveSoftmax, narrow tail"):
        head = HEADS[name](logits)
        rows, target = hidden(CLASSES, head.in_features), torch.arange(CLASSES) + head.num_classes - CLASSES
        torch.testing.assert_close(head(rows, target), head.nll(rows, target).mean(), rtol=8 * EPS, atol=0)
