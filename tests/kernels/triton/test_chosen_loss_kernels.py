"""Triton's losses of chosen classes, and their derivatives, are those of the reference."""

import pytest
import torch

from vastmax.kernels import reference, triton

NUM_CLASSES, SCALE = 11, 0.7
SHAPES = [(3, 5, 20), (2, 1, 1), (2, 70, 33), (1, 3, 4100), (0, 4, 3)]


def problem(device, shape, dtype=torch.float32, with_bias=True):
    num_rows, num_ids, size = shape
    hidden = torch.randn(size, num_rows, device=device).t()
    weight = (torch.randn(NUM_CLASSES, 2 * size, device=device) / size**0.5).to(dtype)[:, ::2]
    bias = torch.randn(2 * NUM_CLASSES, device=device).to(dtype)[::2] if with_bias else None
    ids = torch.randint(NUM_CLASSES, (num_ids, num_rows), device=device).t()
    offset = torch.randn(num_ids, num_rows, device=device).t()
    return hidden, weight, bias, ids, offset


def double(*tensors):
    return [x.double() if x is not None and x.is_floating_point() else x for x in tensors]


def assert_same(found, expected, rtol=1e-5, atol=2e-6):
    for mine, right in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), right, rtol=rtol, atol=atol)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 0, 4)])
def test_logistic_rows(device, shape, dtype, with_bias):
    hidden, weight, bias, ids, offset = problem(device, shape, dtype, with_bias)
    positive = torch.rand(shape[0], 2 * shape[1], device=device)[:, ::2] < 0.5
    share = torch.rand(shape[0], shape[1], device=device)
    share[:1, :1] = 0
    offset[:1, :1] = -torch.inf
    given = hidden, weight, bias, ids, positive, offset, share
    assert_same(triton.logistic_rows(*given, SCALE), reference.logistic_rows(*double(*given), SCALE))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_rows(device, shape, dtype, with_bias):
    *given, offset = problem(device, shape, dtype, with_bias)
    offset[:, 1::3] = torch.inf
    assert_same(triton.softmax_rows(*given, offset, SCALE), reference.softmax_rows(*double(*given, offset), SCALE))


def test_softmax_rows_where_the_target_is_nearly_certain(device):
    """1 - p is known to its own rounding, not to that of p."""
    hidden, weight, bias, ids, offset = problem(device, (2, 5, 8))
    ids[:, 0], ids[:, 1:], offset[:, 0] = 0, 3, -18.0
    found = triton.softmax_rows(hidden, weight, bias, ids, offset, 1.0)
    expected = reference.softmax_rows(*double(hidden, weight, bias, ids, offset), 1.0)
    assert (expected.slope.abs() < 1e-6).all()
    for mine, right in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-5 * right.abs().max().item())


def test_tiny_logistic_losses_are_known_to_their_own_rounding(device):
    hidden, weight, bias, ids, offset = problem(device, (2, 5, 8))
    given = hidden, weight, bias, ids, torch.zeros_like(ids, dtype=torch.bool), offset + 25, torch.ones_like(offset)
    expected = reference.logistic_rows(*double(*given), 1.0)
    assert (expected.loss < 1e-7).all()
    assert_same(triton.logistic_rows(*given, 1.0), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6, 1e8])
def test_an_offset_of_all_logits_costs_no_digit(device, offset):
    """Steps of 8 are exact beside 1e8; losses of 16 nats to 1e-10, to the rounding of the log counts."""
    lead, num_ids, half = torch.tensor([-16, 0, 8, 16, 24], device=device), 6, 0.5
    step = torch.tensor([0, 0, -8, -16, 8, -8], device=device)
    logits = torch.where(torch.arange(num_ids, device=device) == 0, lead[:, None], step).float() / half
    ids = torch.arange(logits.numel(), device=device).view(logits.shape)
    log_count = torch.tensor([0.5, -0.25, 1.0, -1.5, -3.0, 0.75], device=device).repeat(5, 1)
    weight = torch.stack([logits.flatten(), torch.ones_like(logits.flatten())], -1)
    hidden = torch.tensor([[1.0, offset]], device=device).repeat(5, 1)
    plain = hidden * torch.tensor([1.0, 0.0], device=device)
    expected = reference.softmax_rows(*double(plain, weight, None, ids, log_count), half)
    found = triton.softmax_rows(hidden, weight, None, ids, log_count, half)
    assert_same(found[:2], expected[:2], rtol=5e-6, atol=1e-30)

    scores = logits + offset
    target, slope, left_out = scores[:, 0], scores[:, 1:].clone(), torch.full((5,), -1, device=device)
    loss, of_target = triton.softmax_logits_(
        target, slope, log_count[:, 0], log_count[0, 1:], ids[0, 1:], left_out, half
    )
    slopes = torch.cat([of_target[:, None], slope], -1)
    assert_same((loss, slopes), expected[:2], rtol=5e-6, atol=1e-30)


def test_a_masked_target_is_infinitely_wrong(device):
    target, logits, zeros = torch.full((1,), -torch.inf, device=device), *torch.zeros(2, 2, device=device)
    logits, none = logits[None], torch.tensor([-1], device=device)
    ids = torch.arange(3, device=device)
    loss, slope = triton.softmax_logits_(target, logits, zeros[:1], zeros, ids[:2], none, 1.0)
    assert loss.isposinf().all()
    torch.testing.assert_close(torch.cat([slope, logits[0]]).cpu(), torch.tensor([-1.0, 0.5, 0.5]))
    bias = torch.cat([target, zeros])
    rows = triton.softmax_rows(zeros[:1, None], bias.new_zeros(3, 1), bias, ids[None], bias.new_zeros(1, 3), 1.0)
    assert rows.loss.isposinf().all()
    torch.testing.assert_close(rows.slope.cpu(), torch.tensor([[-1.0, 0.5, 0.5]]))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("num_ids", [0, 1, 37, 2500])
def test_logistic_logits(device, num_ids, shared):
    memory = 3 * torch.randn(num_ids, 4, device=device)
    logits, exact = memory.t(), memory.t().double()
    offset = torch.randn(num_ids if shared else (4, num_ids), device=device)
    offset[..., :1] = torch.inf
    loss = triton.logistic_logits_(logits, offset, SCALE)
    expected = reference.logistic_logits_(exact, offset.double(), SCALE)
    assert_same((loss, logits), (expected, exact), atol=1e-6 * max(num_ids, 1) ** 0.5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("num_ids", [0, 1, 37, 2500])
def test_softmax_logits(device, num_ids, shared):
    memory = 3 * torch.randn(num_ids, 4, device=device)
    logits, exact = memory.t(), memory.t().double()
    offset = torch.randn(num_ids if shared else (4, num_ids), device=device)
    offset[..., 2:3] = torch.inf
    ids = torch.arange(2 * num_ids, device=device)[::2]
    left_out = torch.tensor([-1, 0, 36, 4], device=device)
    target_logit, target_offset = torch.randn(2, 8, device=device)[:, ::2]
    target_logit[3] = 40.0
    found = triton.softmax_logits_(target_logit, logits, target_offset, offset, ids, left_out, SCALE)
    expected = reference.softmax_logits_(*double(target_logit, exact, target_offset, offset), ids, left_out, SCALE)
    assert_same((*found, logits), (*expected, exact))
    if num_ids > 1:
        torch.testing.assert_close(found[1][3].double(), expected[1][3], rtol=1e-4, atol=0)


def test_class_rows_past_32_bits(device):
    hidden, weight, bias, ids, offset = problem(device, (2, 6, 5), torch.bfloat16)
    stride = (1 << 31) // 9
    memory = torch.empty(NUM_CLASSES * stride, dtype=torch.bfloat16, device=device).view(NUM_CLASSES, stride)
    distant = memory[:, :5].copy_(weight)
    ids[:, 2] = NUM_CLASSES - 1
    found = triton.softmax_rows(hidden, distant, bias, ids, offset, SCALE)
    assert_same(found, reference.softmax_rows(*double(hidden, weight, bias, ids, offset), SCALE))
