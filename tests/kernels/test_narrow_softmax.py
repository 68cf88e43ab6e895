"""The softmax of many classes and few features: the reference against autograd, and Numba against the reference."""

import pytest
import torch

from vastmax.kernels import numba, reference
from vastmax.kernels.numba.narrow_softmax import BLOCK
from vastmax.scoring.partition import SplitPartition, total

DTYPES = {torch.float64: 1e-12, torch.float32: 3e-6}


@pytest.fixture(params=[reference, numba], ids=["reference", "numba"])
def kernels(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def partition(kernels, hidden, weight, label):
    label_logit, sums = kernels.narrow_partition(hidden, weight, label)
    return SplitPartition.of(label_logit, total(sums))


@pytest.mark.parametrize("features", [1, 4, 7])
@pytest.mark.parametrize("rows", [1, 4, 6])
@pytest.mark.parametrize("classes", [1, 5, BLOCK, 3 * BLOCK + 9, 20 * BLOCK])
def test_partition_and_its_gradients(kernels, dtype, features, rows, classes):
    hidden = torch.randn(rows, features, dtype=dtype, requires_grad=True)
    weight = (3 * torch.randn(classes, features, dtype=dtype)).requires_grad_()
    label = torch.randint(classes, (rows,))
    upstream = torch.randn(rows, dtype=dtype)
    logits = hidden @ weight.t()
    found = partition(kernels, hidden.detach(), weight.detach(), label)
    tolerance = DTYPES[dtype]
    torch.testing.assert_close(found.log_partition, logits.logsumexp(-1).detach(), rtol=tolerance, atol=tolerance)
    wanted = logits.gather(-1, label.unsqueeze(-1)).squeeze(-1).detach()
    torch.testing.assert_close(found.target_logit, wanted, rtol=tolerance, atol=4 * tolerance)

    # Scaled as a loss does, the slopes are the upstream gradient times the probabilities of the other classes.
    others = logits.softmax(-1).detach().scatter(-1, label.unsqueeze(-1), 0.0)
    expected = torch.autograd.grad((upstream.unsqueeze(-1) * others * logits).sum(), (hidden, weight))
    gradients = kernels.narrow_partition_gradients(
        hidden.detach(), weight.detach(), label, found.maximum, upstream * (-found.log_mass).exp()
    )
    for gradient, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=4 * tolerance, atol=4 * tolerance)


def test_logits_far_from_zero(kernels, dtype):
    """Exponentials of the logits themselves would overflow, or all be 0."""
    weight = torch.arange(1.0, 2.0 * BLOCK).to(dtype).unsqueeze(-1)
    for scale in (100.0, -100.0):
        hidden = torch.tensor([[scale]], dtype=dtype)
        expected = (hidden @ weight.t()).log_softmax(-1)
        for label in (0, BLOCK, 2 * BLOCK - 2):
            found = partition(kernels, hidden, weight, torch.tensor([label]))
            torch.testing.assert_close(found.log_prob, expected[:, label])


def test_no_rows(kernels, dtype):
    hidden, weight = torch.empty(0, 4, dtype=dtype), torch.randn(300, 4, dtype=dtype)
    label = torch.empty(0, dtype=torch.int64)
    assert partition(kernels, hidden, weight, label).log_prob.shape == (0,)
    none = hidden[:, 0]
    of_hidden, of_weight = kernels.narrow_partition_gradients(hidden, weight, label, none, none)
    assert of_hidden.shape == (0, 4)
    assert torch.equal(of_weight, torch.zeros_like(weight))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_numbers_on_any_number_of_threads(threads):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 4, generator=generator), torch.randn(5000, 4, generator=generator)
    label = torch.randint(5000, (5,), generator=generator)
    before = torch.get_num_threads()

    def results():
        found = partition(numba, hidden, weight, label)
        return (
            *found,
            *numba.narrow_partition_gradients(hidden, weight, label, found.maximum, found.log_mass),
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
    hidden, weight, label = torch.randn(3, 4), torch.randn(600, 4).bfloat16(), torch.tensor([0, 1, 599])
    halves, wide = (partition(reference, hidden, table, label) for table in (weight, weight.float()))
    torch.testing.assert_close(halves, wide)
