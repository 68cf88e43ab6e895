"""Fused losses of chosen classes: the reference against autograd, and Numba against the reference."""

import math

import pytest
import torch
from torch.nn import functional

from vastmax.kernels import numba, reference

DTYPES = {torch.float64: 1e-12, torch.float32: 3e-6}
ROWS, CLASSES, FEATURES, SCALE = 5, 13, 7, 0.7


@pytest.fixture(params=[reference, numba], ids=["reference", "numba"])
def kernels(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["bias", "no-bias"])
def problem(request, dtype):
    hidden = torch.randn(ROWS, FEATURES, dtype=dtype, requires_grad=True)
    weight = torch.randn(CLASSES, FEATURES, dtype=dtype)
    bias = torch.randn(CLASSES, dtype=dtype) if request.param else None
    return hidden, weight, bias


def scores(hidden, weight, bias, ids):
    logits = functional.linear(hidden, weight, bias).gather(-1, ids)
    logits.retain_grad()
    return logits


def agree(found, hidden, logits, loss):
    """Loss, slope and the gradient of hidden, for an upstream gradient of one per row."""
    tolerance = DTYPES[hidden.dtype]
    loss.backward(torch.ones_like(loss))
    for mine, expected in zip(found, (loss, logits.grad, hidden.grad), strict=True):
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_ids", [1, 4, 6])
def test_logistic_rows(kernels, problem, num_ids):
    hidden, weight, bias = problem
    ids = torch.randint(CLASSES, (ROWS, num_ids))
    positive = torch.rand(ROWS, num_ids) < 0.5
    offset = torch.randn(ROWS, num_ids, dtype=hidden.dtype)
    share = torch.rand(ROWS, num_ids, dtype=hidden.dtype)
    share[0, 0] = 0
    found = kernels.logistic_rows(hidden.detach(), weight, bias, ids, positive, offset, share, SCALE)
    logits = scores(hidden, weight, bias, ids)
    x = (SCALE * logits - offset) * torch.where(positive, 1, -1)
    agree(found, hidden, logits, -(share * functional.logsigmoid(x)).sum(-1))


def test_a_class_without_share_counts_for_nothing_whatever_its_offset(kernels, problem):
    hidden, weight, bias = problem
    ids = torch.randint(CLASSES, (ROWS, 3))
    positive = torch.zeros(ROWS, 3, dtype=torch.bool)
    offset, share = torch.zeros(ROWS, 3, dtype=hidden.dtype), torch.ones(ROWS, 3, dtype=hidden.dtype)
    offset[:, 1], share[:, 1] = -torch.inf, 0
    found = kernels.logistic_rows(hidden.detach(), weight, bias, ids, positive, offset, share, SCALE)
    kept = [0, 2]
    alone = kernels.logistic_rows(
        hidden.detach(), weight, bias, ids[:, kept], positive[:, kept], offset[:, kept], share[:, kept], SCALE
    )
    tolerance = DTYPES[hidden.dtype]
    torch.testing.assert_close(found.loss, alone.loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.slope[:, kept], alone.slope, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.grad_hidden, alone.grad_hidden, rtol=tolerance, atol=tolerance)
    assert (found.slope[:, 1] == 0).all()


@pytest.mark.parametrize("num_ids", [1, 4, 6])
def test_softmax_rows(kernels, problem, num_ids):
    hidden, weight, bias = problem
    ids = torch.randint(CLASSES, (ROWS, num_ids))
    offset = torch.randn(ROWS, num_ids, dtype=hidden.dtype)
    offset[0, 1:2] = torch.inf
    found = kernels.softmax_rows(hidden.detach(), weight, bias, ids, offset, SCALE)
    logits = scores(hidden, weight, bias, ids)
    agree(found, hidden, logits, -(SCALE * logits - offset).log_softmax(-1)[:, 0])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("num_ids", [0, 1, 37])
def test_logistic_logits(kernels, dtype, num_ids, shared):
    logits = (3 * torch.randn(ROWS, num_ids, dtype=dtype)).requires_grad_()
    offset = torch.randn(num_ids if shared else (ROWS, num_ids), dtype=dtype)
    offset[..., :1] = torch.inf
    loss = functional.softplus(SCALE * logits - offset).sum(-1)
    loss.sum().backward()
    slope = logits.detach().clone()
    found = kernels.logistic_logits_(slope, offset, SCALE)
    torch.testing.assert_close(found, loss.detach(), rtol=DTYPES[dtype], atol=DTYPES[dtype])
    torch.testing.assert_close(slope, logits.grad, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("num_ids", [0, 1, 37])
def test_softmax_logits(kernels, dtype, num_ids, shared):
    ids = torch.arange(num_ids)
    left_out = torch.tensor([-1, 0, 36, 5, -1])
    target_logit = (3 * torch.randn(ROWS, dtype=dtype)).requires_grad_()
    logits = (3 * torch.randn(ROWS, num_ids, dtype=dtype)).requires_grad_()
    target_offset = torch.randn(ROWS, dtype=dtype)
    offset = torch.randn(num_ids if shared else (ROWS, num_ids), dtype=dtype)
    offset[..., 2:3] = torch.inf
    x = (SCALE * logits - offset).masked_fill(ids == left_out[:, None], -torch.inf)
    target = SCALE * target_logit - target_offset
    loss = torch.cat([target[:, None], x], -1).logsumexp(-1) - target
    loss.sum().backward()
    slope = logits.detach().clone()
    found, target_slope = kernels.softmax_logits_(
        target_logit.detach(), slope, target_offset, offset, ids, left_out, SCALE
    )
    for mine, expected in ((found, loss), (slope, logits.grad), (target_slope, target_logit.grad)):
        torch.testing.assert_close(mine, expected.detach(), rtol=DTYPES[dtype], atol=DTYPES[dtype])


def test_logits_far_apart_neither_overflow_nor_vanish(kernels, dtype):
    target, logits = torch.tensor([-200.0, 0.0, 200.0], dtype=dtype), torch.zeros(3, 2, dtype=dtype)
    zeros = torch.zeros(3, dtype=dtype)
    loss, _ = kernels.softmax_logits_(target, logits, zeros, zeros[:2], torch.arange(2), torch.full((3,), -1), 1.0)
    expected = torch.tensor([200 + math.log(2), math.log(3), 0.0], dtype=dtype)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-12)
    noise = torch.tensor([[-200.0, 0.0, 200.0]], dtype=dtype)
    loss = kernels.logistic_logits_(noise, torch.zeros(3, dtype=dtype), 1.0)
    torch.testing.assert_close(loss, torch.tensor([200 + math.log(2)], dtype=dtype))
    torch.testing.assert_close(noise, torch.tensor([[0.0, 0.5, 1.0]], dtype=dtype))


OFFSETS = [0.0, 1e2, 1e4, 1e6, 1e8]
HALF = 0.5  # a scale that costs no digit either
LEADS = torch.tensor([-16, 0, 8, 16, 24])  # of the target: from losses of 16 nats to losses of 1e-10


def offset_problem(offset, dtype):
    """Five rows of logits in steps of 8, exact beside 1e8, as hidden and class rows; the target comes first."""
    step = torch.tensor([0, 0, -8, -16, 8])
    logits = torch.where(torch.arange(5) == 0, LEADS[:, None], step).to(dtype) / HALF
    hidden = torch.tensor([[1.0, offset]] * 5, dtype=dtype)
    weight = torch.stack([logits.flatten(), torch.ones(25, dtype=dtype)], -1)
    return hidden, weight, torch.arange(25).view(5, 5), hidden @ weight.t()


@pytest.mark.parametrize("offset", OFFSETS)
def test_an_offset_of_all_logits_costs_no_digit(kernels, offset):
    """To the rounding of the log counts, at offsets to 1e8 and losses down to 1e-10; slopes sum to zero."""
    log_count = torch.tensor([0.5, -0.25, 1.0, -1.5, -3.0])
    hidden, weight, ids, logits = offset_problem(offset, torch.float32)
    rows = kernels.softmax_rows(hidden, weight, None, ids, log_count.repeat(5, 1), HALF)
    own = logits.gather(-1, ids)
    target, slope = own[:, 0].clone(), own[:, 1:].clone()
    loss, target_slope = kernels.softmax_logits_(
        target, slope, log_count[0].expand(5).contiguous(), log_count[1:], ids[0, 1:], torch.full((5,), -1), HALF
    )

    x = (HALF * offset_problem(0.0, torch.float64)[3].gather(-1, ids) - log_count.double()).requires_grad_()
    expected = torch.nn.functional.softplus(x[:, 1:].logsumexp(-1) - x[:, 0])
    expected_slope = HALF * torch.autograd.grad(expected.sum(), x)[0]
    for found, slopes in (
        (rows.loss, rows.slope),
        (loss, torch.cat([target_slope[:, None], slope], -1)),
    ):
        torch.testing.assert_close(found.double(), expected.detach(), rtol=3e-6, atol=0)
        torch.testing.assert_close(slopes.double(), expected_slope, rtol=3e-6, atol=1e-30)
        assert (slopes.sum(-1).abs() <= 1e-6 * slopes.abs().amax(-1)).all()


def test_a_masked_target_is_infinitely_wrong(kernels, dtype):
    """Nor does a nan come of it: the other classes are pushed down by their shares."""
    target, logits = torch.full((1,), -torch.inf, dtype=dtype), torch.zeros(1, 2, dtype=dtype)
    zeros = torch.zeros(2, dtype=dtype)
    loss, slope = kernels.softmax_logits_(
        target, logits, zeros[:1], zeros, torch.arange(2), torch.tensor([-1]), 1.0
    )
    assert loss.isposinf().all()
    torch.testing.assert_close(torch.cat([slope, logits[0]]), torch.tensor([-1.0, 0.5, 0.5], dtype=dtype))
    bias = torch.tensor([-torch.inf, 0.0, 0.0], dtype=dtype)
    rows = kernels.softmax_rows(
        zeros[:1, None], zeros.new_zeros(3, 1), bias, torch.arange(3)[None], zeros.new_zeros(1, 3), 1.0
    )
    assert rows.loss.isposinf().all()
    torch.testing.assert_close(rows.slope, torch.tensor([[-1.0, 0.5, 0.5]], dtype=dtype))
