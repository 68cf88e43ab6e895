"""The softmax of many classes and few features: the reference against autograd, and Numba against the reference."""

import pytest
import torch

from vastmax.kernels import numba, reference
from vastmax.kernels.numba.narrow_softmax import BLOCK

DTYPES = {torch.float64: 1e-12, torch.float32: 3e-6}


@pytest.fixture(params=[reference, numba], ids=["reference", "numba"])
def kernels(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.mark.parametrize("features", [1, 4, 7])
@pytest.mark.parametrize("rows", [1, 4, 6])
@pytest.mark.parametrize("classes", [1, 5, BLOCK, 3 * BLOCK + 9, 20 * BLOCK])
def test_log_partition_and_its_gradients(kernels, dtype, features, rows, classes):
    hidden = torch.randn(rows, features, dtype=dtype, requires_grad=True)
    weight = (3 * torch.randn(classes, features, dtype=dtype)).requires_grad_()
    upstream = torch.randn(rows, dtype=dtype)
    expected = (hidden @ weight.t()).logsumexp(-1)
    expected.backward(upstream)

    found = kernels.narrow_log_partition(hidden.detach(), weight.detach())
    gradients = kernels.narrow_log_partition_gradients(hidden.detach(), weight.detach(), found, upstream)
    tolerance = DTYPES[dtype]
    torch.testing.assert_close(found, expected.detach(), rtol=tolerance, atol=tolerance)
    for gradient, leaf in zip(gradients, (hidden, weight), strict=True):
        torch.testing.assert_close(gradient, leaf.grad, rtol=4 * tolerance, atol=4 * tolerance)


def test_logits_far_from_zero(kernels, dtype):
    """Exponentials of the logits themselves would overflow, or all be 0."""
    weight = torch.arange(1.0, 2.0 * BLOCK).to(dtype).unsqueeze(-1)
    for scale in (100.0, -100.0):
        hidden = torch.tensor([[scale]], dtype=dtype)
        expected = torch.logsumexp(hidden @ weight.t(), -1)
        torch.testing.assert_close(kernels.narrow_log_partition(hidden, weight), expected)


def test_no_rows(kernels, dtype):
    hidden, weight = torch.empty(0, 4, dtype=dtype), torch.randn(300, 4, dtype=dtype)
    assert kernels.narrow_log_partition(hidden, weight).shape == (0,)
    of_hidden, of_weight = kernels.narrow_log_partition_gradients(hidden, weight, hidden[:, 0], hidden[:, 0])
    assert of_hidden.shape == (0, 4)
    assert torch.equal(of_weight, torch.zeros_like(weight))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_numbers_on_any_number_of_threads(threads):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 4, generator=generator), torch.randn(5000, 4, generator=generator)
    before = torch.get_num_threads()

    def results():
        log_partition = numba.narrow_log_partition(hidden, weight)
        return (
            log_partition,
            *numba.narrow_log_partition_gradients(hidden, weight, log_partition, log_partition),
        )

    expected = results()
    torch.set_num_threads(threads)
    try:
        found = results()
    finally:
        torch.set_num_threads(before)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_half_precision_class_rows():
    hidden, weight = torch.randn(3, 4), torch.randn(600, 4).bfloat16()
    torch.testing.assert_close(
        reference.narrow_log_partition(hidden, weight), reference.narrow_log_partition(hidden, weight.float())
    )
