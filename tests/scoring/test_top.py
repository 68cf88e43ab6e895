"""linear_topk against sorting every log-probability."""

import math

import pytest
import torch
from torch.nn import functional

import vastmax
from vastmax.scoring import linear_topk, top
from vastmax.scoring.top import topk_by_id


@pytest.mark.parametrize("rows", [(), (6,), (2, 3), (0,)])
@pytest.mark.parametrize("block_size", [1, 3, 13, None])
@pytest.mark.parametrize("k", [1, 4, 13])
def test_equals_torch_topk(k, block_size, rows):
    g = torch.Generator().manual_seed(k)
    hidden = torch.randn(*rows, 5, generator=g, dtype=torch.float64)
    weight = torch.randn(13, 5, generator=g, dtype=torch.float64)
    bias = torch.randn(13, generator=g, dtype=torch.float64)
    ours = linear_topk(hidden, weight, k, linear_bias=bias, block_size=block_size)
    theirs = functional.linear(hidden, weight, bias).log_softmax(-1).topk(k)
    torch.testing.assert_close(ours.values, theirs.values)
    assert torch.equal(ours.indices, theirs.indices)


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (14, ValueError), (2.0, TypeError)])
def test_errors(k, error):
    with pytest.raises(error, match="k: expected"):
        linear_topk(torch.zeros(2, 5), torch.zeros(13, 5), k)


def by_id(values, k):
    """Sorted by falling value and rising id."""
    rows = [sorted(range(len(row)), key=lambda c: (-row[c], c))[:k] for row in values.tolist()]
    return torch.tensor(rows).view(len(rows), k)


@pytest.fixture
def equals():
    """Rows of few values: masked classes, a row of one value, one masked but for a class, one without equals."""
    g = torch.Generator().manual_seed(2)
    values = torch.randint(-2, 3, (12, 13), generator=g).double()
    values[values == -2] = -torch.inf
    values[0] = 0.0
    values[1] = -torch.inf
    values[1, 5] = 1.0
    values[2] = torch.randperm(13, generator=g).double()
    return values


@pytest.mark.parametrize("elements", [1, 40, 1 << 20])
@pytest.mark.parametrize("k", range(1, 14))
def test_equals_go_by_id(k, elements, equals, monkeypatch):
    monkeypatch.setattr(top, "TIED_ELEMENTS", elements)
    found = topk_by_id(equals, k)
    assert torch.equal(found.indices, by_id(equals, k))
    assert torch.equal(found.values, equals.gather(-1, found.indices))
    assert torch.equal(topk_by_id(equals.view(3, 4, 13), k).indices.view(12, k), found.indices)
    assert torch.equal(topk_by_id(equals[4], k).indices, found.indices[4])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 4, 12])
def test_equals_go_by_rising_id_where_they_are_not_looked_at(k, dtype):
    values = torch.randint(-3, 4, (50, 13)).to(dtype) / 3
    values[0] = torch.tensor([0.0, -0.0] * 6 + [-torch.inf], dtype=dtype)
    values[1] = torch.tensor([-torch.inf, torch.inf, *range(-5, 6)], dtype=dtype)
    expected = values.sort(dim=-1, descending=True, stable=True)
    with vastmax.checks("device"):
        found = topk_by_id(values, k)
    assert torch.equal(found.indices, expected.indices[:, :k])
    assert torch.equal(found.values, expected.values[:, :k])


@pytest.mark.parametrize("block_size", [1, 3, 13, None])
@pytest.mark.parametrize("k", [1, 3, 8, 13])
def test_equals_go_by_id_in_blocks_of_classes(k, block_size, equals):
    """A class of a later block does not displace an equal one of an earlier block."""
    hidden = torch.eye(12, dtype=torch.float64)
    finite = equals.isfinite().all(-1)
    scores = equals.masked_fill(~finite.unsqueeze(-1), 0.0)
    found = linear_topk(hidden, scores.T, k, block_size=block_size)
    assert torch.equal(found.indices, by_id(scores, k))
    torch.testing.assert_close(found.values, scores.log_softmax(-1).gather(-1, found.indices))
    for row in equals[~finite]:
        values, indices = linear_topk(hidden[:1], row.new_zeros(13, 12), k, linear_bias=row, block_size=block_size)
        assert torch.equal(indices, by_id(row[None], k))
        torch.testing.assert_close(values, row.log_softmax(-1)[indices])


def test_gradients_of_the_largest():
    values = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]], requires_grad=True)
    upstream = torch.tensor([[3.0, 5.0]])
    (found,) = torch.autograd.grad(topk_by_id(values, 2).values, values, upstream)
    assert found.tolist() == [[0.0, 3.0, 5.0, 0.0, 0.0]]


@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6, 1e8])
def test_log_probabilities_are_exact_beside_any_offset(offset, block_size):
    """In float32: log Z as one number has no digits left of log 2 beside logits of 1e8."""
    weight = torch.tensor([[offset], [offset]])
    values, indices = linear_topk(torch.ones(1, 1), weight, 2, block_size=block_size)
    assert indices.tolist() == [[0, 1]]
    torch.testing.assert_close(values, torch.full((1, 2), -math.log(2)), rtol=1e-7, atol=0)
