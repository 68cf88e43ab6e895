"""linear_topk against sorting every log-probability."""

import pytest
import torch
from torch.nn import functional

from vastmax.scoring import linear_topk


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
