import math

import pytest
import torch
from row_gradients import sparse
from torch import nn
from torch.testing import assert_close

from vastmax.optim import clip_grad_norm_, clip_grad_value_


def params_with(*grads: torch.Tensor | None) -> list[nn.Parameter]:
    params = []
    for grad in grads:
        params.append(nn.Parameter(torch.zeros(3 if grad is None else grad.shape, dtype=torch.float64)))
        params[-1].grad = None if grad is None else grad.clone()
    return params


def random_grads(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(4, 3), (5,), (2, 3, 2)]]


NORM_TYPES = [0.5, 1, 2.0, 3.0, math.inf]


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e3, math.inf])
def test_dense_gradients_as_torch_does(max_norm, norm_type):
    ours, theirs = params_with(*random_grads(0), None), params_with(*random_grads(0), None)
    assert torch.equal(
        clip_grad_norm_(ours, max_norm, norm_type), nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    )
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        assert torch.equal(a.grad, b.grad)
    assert ours[-1].grad is None


def sparse_and_dense(coalesced):
    """Parameters with sparse gradients, of rows that occur several times or coalesced, and their dense equals."""
    dense, bias, _ = random_grads(1)
    rows = sparse([4, 0, 4, 4], torch.cat([dense[:2], -dense[1:3]]), 6)
    biases = sparse([1, 1, 0], bias[:3], 9)
    assert not rows.is_coalesced()
    grads = [dense, rows, biases, sparse([], torch.zeros(0, 3, dtype=torch.float64), 6)]
    grads = [grad.coalesce() if grad.is_sparse and coalesced else grad for grad in grads]
    return params_with(*grads), params_with(*(grad.to_dense() if grad.is_sparse else grad for grad in grads))


def assert_same_gradients(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a.grad.to_dense() if a.grad.is_sparse else a.grad, b.grad, rtol=1e-14, atol=0.0)
    assert all(p.grad.is_sparse and p.grad.is_coalesced() for p in ours[1:])


@pytest.mark.parametrize("coalesced", [False, True])
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_sparse_gradients_are_clipped_by_norm_as_their_dense_equals(max_norm, norm_type, coalesced):
    ours, theirs = sparse_and_dense(coalesced)
    total = clip_grad_norm_((p for p in ours), max_norm, norm_type)
    assert_close(total, nn.utils.clip_grad_norm_(theirs, max_norm, norm_type), rtol=1e-14, atol=0.0)
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("coalesced", [False, True])
@pytest.mark.parametrize("clip_value", [0.0, 0.3, 1e3, math.inf])
def test_gradients_are_clipped_by_value_as_their_dense_equals(clip_value, coalesced):
    ours, theirs = sparse_and_dense(coalesced)
    before = ours[1].grad.to_dense()
    clip_grad_value_((p for p in ours), clip_value)
    nn.utils.clip_grad_value_(theirs, clip_value)
    assert_same_gradients(ours, theirs)
    assert torch.equal(ours[1].grad.to_dense(), before) == (clip_value > 1)


def test_a_value_is_clipped_where_there_is_nothing_to_clip():
    (alone,) = params_with(sparse([2], torch.tensor([[3.0, -4.0]], dtype=torch.float64), 5))
    clip_grad_value_(alone, 3.5)
    assert alone.grad.values().tolist() == [[3.0, -3.5]]
    clip_grad_value_(params_with(None), 1.0)


def test_one_parameter_and_only_sparse_gradients():
    (param,) = params_with(sparse([2], torch.tensor([[3.0, 4.0]], dtype=torch.float64), 5))
    assert clip_grad_norm_(param, 1.0).item() == 5.0
    assert_close(param.grad.values().norm().item(), 1.0, rtol=1e-6, atol=0.0)


def test_gradients_that_are_part_of_a_graph_are_clipped_outside_of_it():
    values = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    params = params_with(sparse([2], values, 5), values)
    for param in params:
        param.grad.requires_grad_()
    assert not clip_grad_norm_(params, 1.0).requires_grad
    assert_close(params[0].grad.to_dense()[2], params[1].grad[0], rtol=1e-14, atol=0.0)


def test_no_gradient_is_norm_zero():
    assert clip_grad_norm_(params_with(None), 1.0).item() == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_returned_and_applied_as_torch_does(bad):
    values = torch.tensor([[bad, 1.0]], dtype=torch.float64)
    ours, theirs = params_with(sparse([0], values, 1), values), params_with(values, values)
    total, expected = clip_grad_norm_(ours, 1.0), nn.utils.clip_grad_norm_(theirs, 1.0)
    assert not total.isfinite()
    assert_close(total, expected, equal_nan=True)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a.grad.to_dense() if a.grad.is_sparse else a.grad, b.grad, equal_nan=True)


@pytest.mark.parametrize("bound", [-1.0, math.nan])
def test_a_bound_out_of_range(bound):
    params = params_with(*random_grads(2))
    with pytest.raises(ValueError, match=f"max_norm: expected a number of at least 0, got {bound}"):
        clip_grad_norm_(params, bound)
    with pytest.raises(ValueError, match=f"clip_value: expected a number of at least 0, got {bound}"):
        clip_grad_value_(params, bound)


@pytest.mark.parametrize("norm_type", [0, -1.0, -math.inf, math.nan])
def test_a_norm_that_counts_zeros_is_refused(norm_type):
    message = f"norm_type: expected a number greater than 0, or infinity, got {norm_type}"
    with pytest.raises(ValueError, match=message):
        clip_grad_norm_(params_with(*random_grads(2)), 1.0, norm_type)
