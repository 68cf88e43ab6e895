"""The softmax of blocks: the meaning against torch, and Numba equal to it."""

import pytest
import torch

from vastmax.kernels import numba, reference

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6}
LEAST = {dtype: torch.finfo(dtype).min for dtype in TOLERANCE}


@pytest.fixture(params=[reference, numba], ids=["reference", "numba"])
def kernels(request):
    return request.param


@pytest.fixture(params=TOLERANCE, ids=str)
def logits(request):
    """Rows of all sizes of logit, one with masked classes and one with no other."""
    size = torch.tensor([0, 1, 10, 100, 1, 1], dtype=request.param)
    found = torch.randn(6, 1001, dtype=request.param) * size[:, None]
    found[4, ::2] = -torch.inf
    found[5] = -torch.inf
    return found


def close(mine, expected):
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)


def test_exponentials_and_their_sums(kernels, logits):
    block = logits.clone()
    maximum, mass = kernels.exponentials_(block)
    close(maximum, logits.amax(-1).clamp(min=LEAST[logits.dtype]))
    expected = (logits - maximum[:, None]).exp()
    close(block, expected)
    close(mass / 1001, expected.double().mean(-1).to(mass.dtype))
    close((maximum + mass.log())[:5], logits[:5].logsumexp(-1))


def test_sums_that_leave_the_logits(kernels, logits):
    before = logits.clone()
    for mine, expected in zip(kernels.row_sums(logits), kernels.exponentials_(before.clone()), strict=True):
        close(mine, expected)
    assert torch.equal(logits, before)


def test_softmax_gradient(kernels, logits):
    upstream = torch.randn(6, dtype=logits.dtype)
    log_partition = logits.logsumexp(-1).nan_to_num(neginf=0.0)
    expected = (logits - log_partition[:, None]).exp() * upstream[:, None]
    kernels.softmax_gradient_(logits, log_partition, upstream)
    close(logits, expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 100_001)])
def test_column_maxima(kernels, shape):
    block, scale = torch.rand(shape), torch.rand(shape[0])
    close(kernels.column_maxima(block, scale), (block * scale[:, None]).amax(0))


def test_nan_is_not_lost(kernels, logits):
    logits[1, 500] = torch.nan
    assert kernels.row_sums(logits).mass.isnan().tolist() == [False, True, False, False, False, False]
