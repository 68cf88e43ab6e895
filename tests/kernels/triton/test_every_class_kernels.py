"""Triton's partition of every class and its gradient are those of the reference."""

import pytest
import torch

from vastmax.kernels import reference, triton
from vastmax.kernels.triton import every_class
from vastmax.scoring.partition import SplitPartition

DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
]
SHAPES = [(0, 3, 4), (1, 1, 1), (5, 7, 20), (3, 270, 33), (130, 2, 3)]
CASES = [(shape, dtypes, options) for shape in SHAPES for dtypes in DTYPES for options in ("bias", "softcap")] + [
    ((130, 200, 70), (torch.bfloat16, torch.bfloat16), "plain"),
    ((70, 200, 70), (torch.float32, torch.float32), "plain"),
    ((70, 9, 3), (torch.float32, torch.float32), "masked"),
]


def problem(shape, device, dtypes=(torch.float32, torch.float32), masked=False):
    num_rows, num_classes, size = shape
    hidden = torch.randn(size, num_rows, device=device).to(dtypes[0]).t()
    weight = torch.randn(num_classes, 2 * size, device=device).to(dtypes[1])[:, ::2]
    bias = torch.randn(2 * num_classes, device=device)[::2].to(dtypes[1])
    if masked:
        bias[torch.arange(num_classes, device=device) % 3 == 1] = -torch.inf
    target = torch.randint(num_classes, (2 * num_rows,), device=device)[::2]
    return hidden, weight, bias, target


def double(tensor):
    return None if tensor is None else tensor.double()


def assert_near(found, expected, rtol):
    """Compare in units of the largest number: each entry is a sum of terms of that size."""
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    if expected.numel():
        torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=rtol * expected.abs().max().item())


def partition_of(given, **options):
    """The maximum and log-mass of every class, as the gradient wants them."""
    target_logit, others = reference.split_partition(*given, **options)
    return SplitPartition.of(target_logit, others)[:2]


@pytest.mark.parametrize(("shape", "dtypes", "options"), CASES)
def test_split_partition(device, shape, dtypes, options):
    hidden, weight, bias, target = problem(shape, device, dtypes, masked=options in ("masked", "softcap"))
    if options == "plain":
        bias = None
    softcap = 3.0 if options == "softcap" else None
    expected = reference.split_partition(hidden.double(), weight.double(), double(bias), target, softcap=softcap)
    target_logit, (maximum, mass) = triton.split_partition(hidden, weight, bias, target, softcap=softcap)
    assert target_logit.dtype == maximum.dtype == mass.dtype == torch.float32
    torch.testing.assert_close(target_logit.double(), expected[0], rtol=1e-5, atol=2e-5)
    some = expected[1].mass > 0  # without another class the maximum is the least number there is
    torch.testing.assert_close(maximum[some].double(), expected[1].maximum[some], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(mass.double(), expected[1].mass, rtol=3e-5, atol=2e-5)


@pytest.mark.parametrize(("shape", "dtypes", "options"), CASES)
def test_split_partition_backward(device, shape, dtypes, options):
    hidden, weight, bias, target = problem(shape, device, dtypes, masked=options in ("masked", "softcap"))
    if options == "plain":
        bias = None
    softcap = 3.0 if options == "softcap" else None
    exact = hidden.double(), weight.double(), double(bias), target
    partition = partition_of(exact, softcap=softcap)
    upstream = torch.randn(2, 2 * shape[0], device=device)[:, ::2]
    expected = reference.split_partition_backward(*exact, *partition, *upstream.double(), softcap=softcap)
    found = triton.split_partition_backward(
        hidden, weight, bias, target, *(x.float() for x in partition), *upstream, softcap=softcap
    )
    # The gradient of the logits is rounded to the dtype of bfloat16 inputs, to TF32 on a device for float16's.
    rtol = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtypes[0], 3e-5)
    for gradient, right in zip(found, expected, strict=True):
        assert (gradient is None) == (right is None)
        if right is not None:
            assert_near(gradient, right, rtol)


def test_the_reference_is_the_derivative(device):
    """Of the dense formula, by autograd: u of log Z without the target, v of the target's logit."""
    hidden, weight, bias, target = (
        x.double().requires_grad_() if x.is_floating_point() else x for x in problem((4, 9, 3), device)
    )
    u, v = torch.randn(2, 4, dtype=torch.float64, device=device)
    for softcap in (None, 2.0):
        target_logit, (maximum, mass) = reference.split_partition(hidden, weight, bias, target, softcap=softcap)
        partition = SplitPartition.of(target_logit, reference.BlockSums(maximum, mass))
        # The sum over other classes of u p_c s_c, p held: what u p_c is the gradient of.
        weights = u * (-(partition.log_partition - maximum)).exp().detach()
        scalar = (weights * mass * (maximum - maximum.detach()).exp()).sum() + (v * target_logit).sum()
        expected = torch.autograd.grad(scalar, (hidden, weight, bias))
        gradients = reference.split_partition_backward(
            hidden, weight, bias, target, *partition[:2], u, v, softcap=softcap
        )
        for gradient, right in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, right)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_wanted_gradients_are_made(device, wanted):
    given = problem((5, 7, 4), device)
    partition = partition_of(given)
    upstream = torch.randn(2, 5, device=device)
    everything = triton.split_partition_backward(*given, *partition, *upstream)
    for found, whole, want in zip(
        triton.split_partition_backward(*given, *partition, *upstream, wanted=wanted),
        everything,
        wanted,
        strict=True,
    ):
        assert (found is not None) == want
        assert found is None or found.equal(whole)


def test_blocks_and_parts_add_up(device, monkeypatch):
    """Several blocks of rows and of classes, the products of some cut into parts."""
    given = problem((80, 280, 20), device)
    partition = partition_of(given)
    upstream = torch.randn(2, 80, device=device)
    expected = reference.split_partition_backward(*given, *partition, *upstream)
    for block_rows, programs in ((64, 1024), (128, 1), (1 << 14, 3)):
        monkeypatch.setattr(every_class, "BLOCK_ROWS", block_rows)
        monkeypatch.setattr(every_class, "BLOCK_LOGITS", 128 * 80)
        monkeypatch.setattr(every_class, "PROGRAMS", programs)
        for gradient, right in zip(
            triton.split_partition_backward(*given, *partition, *upstream), expected, strict=True
        ):
            assert_near(gradient, right.double(), 3e-5)
        found = SplitPartition.of(*triton.split_partition(*given))
        torch.testing.assert_close(found.log_partition, sum(partition))


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
def test_logits_far_from_zero(device, offset):
    """What is made of maximum and mass is as exact beside a large logit as beside none."""
    logit = torch.tensor([16.0, 0.0, 0.0, -8.0], device=device)
    hidden, weight = torch.ones(4, 1, device=device), (offset + logit).unsqueeze(-1)
    target = torch.arange(4, device=device)
    partition = SplitPartition.of(*triton.split_partition(hidden, weight, None, target))
    exact = logit.double().log_softmax(-1)
    torch.testing.assert_close(partition.log_prob.double(), exact, rtol=3e-6, atol=0)
    slopes = torch.randn(2, 4, device=device)
    of_hidden, of_weight, _ = triton.split_partition_backward(hidden, weight, None, target, *partition[:2], *slopes)
    p = exact.exp().expand(4, 4)
    wanted = torch.where(torch.eye(4, dtype=torch.bool, device=device), slopes[1, :, None], slopes[0, :, None] * p)
    torch.testing.assert_close(of_weight[:, 0].double(), wanted.sum(0), rtol=3e-6, atol=3e-7)
    assert of_hidden.shape == (4, 1)


def test_a_filter_leaves_out_tiles_of_small_probabilities(device):
    """Tile by tile: those whose probabilities are all below eps and that hold no target of their rows."""
    num_rows, num_classes, eps = 150, 420, 1e-4
    hidden, weight, bias, target = problem((num_rows, num_classes, 20), device)
    tiles = every_class.Tiles.of(hidden, weight)
    bias[tiles.classes : 2 * tiles.classes] = -30.0
    bias[3 * tiles.classes : 4 * tiles.classes] = -30.0
    target[: tiles.rows] = 3 * tiles.classes + 1
    target[tiles.rows :] = 0
    given = hidden, weight, bias, target
    partition = partition_of(given)
    upstream = torch.randn(2, num_rows, device=device)

    logits = (hidden @ weight.t() + bias).double()
    one_hot = torch.nn.functional.one_hot(target, num_classes)
    p = logits.softmax(-1)
    grad = torch.where(one_hot == 1, upstream[1].double().unsqueeze(-1), upstream[0].double().unsqueeze(-1) * p)
    left_out = 0
    for rows in range(0, num_rows, tiles.rows):
        for classes in range(0, num_classes, tiles.classes):
            tile = slice(rows, rows + tiles.rows), slice(classes, classes + tiles.classes)
            if (p[tile] < eps).all() and not one_hot[tile].any():
                grad[tile] = 0
                left_out += 1
    assert left_out
    found = triton.split_partition_backward(*given, *partition, *upstream, filter_eps=eps)
    expected = grad @ weight.double(), grad.t() @ hidden.double(), grad.sum(0)
    for gradient, right in zip(found, expected, strict=True):
        assert_near(gradient, right, 3e-5)
    # Classes in a tile that was left out for every row have no gradient at all.
    assert not found[1][tiles.classes : 2 * tiles.classes].any()
    assert found[1][3 * tiles.classes + 1].any()


def test_class_rows_past_32_bits(device):
    hidden, weight, bias, target = problem((3, 40, 5), device)
    stride = 1 << 26
    memory = torch.empty(40 * stride, dtype=torch.bfloat16, device=device).view(40, stride)
    distant = memory[:, :5].copy_(weight)
    given = distant.to(torch.float32), bias, target
    expected = reference.split_partition(hidden, *given)
    found = triton.split_partition(hidden, distant, bias, target)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    upstream = torch.randn(2, 3, device=device)
    partition = SplitPartition.of(*found)[:2]
    right = reference.split_partition_backward(hidden, *given, *partition, *upstream)
    gradients = triton.split_partition_backward(hidden, distant, bias, target, *partition, *upstream)
    for gradient, expect in zip(gradients, right, strict=True):
        torch.testing.assert_close(gradient, expect, rtol=1e-4, atol=1e-5)
