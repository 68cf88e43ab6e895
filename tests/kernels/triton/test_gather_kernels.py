"""Triton's products and sums of chosen rows are those of the reference."""

import pytest
import torch

from vastmax.kernels import reference, triton

TABLES = [torch.float32, torch.bfloat16, torch.float16]


def table(num_rows, size, dtype, device, kind="contiguous"):
    """Random rows; as a view, they lie so far apart that their places overflow 32 bits, in memory never touched."""
    rows = torch.randn(num_rows, size, device=device).to(dtype)
    if kind == "transposed":
        return rows.t().contiguous().t()
    if kind == "distant":
        stride = (1 << 31) // max(num_rows - 2, 1)
        distant = torch.empty(num_rows * stride, dtype=dtype, device=device).view(num_rows, stride)[:, :size]
        return distant.copy_(rows)
    return rows


@pytest.mark.parametrize("kind", ["contiguous", "transposed", "distant"])
@pytest.mark.parametrize("dtype", TABLES)
@pytest.mark.parametrize(
    ("num_rows", "num_ids", "size"), [(3, 5, 20), (5, 1, 1), (2, 0, 4), (0, 3, 4), (2, 19, 300), (1, 3, 4100)]
)
def test_gather_dot(device, num_rows, num_ids, size, dtype, kind):
    weight = table(7, size, dtype, device, kind)
    hidden = torch.randn(size, num_rows, device=device).t()
    ids = torch.randint(7, (num_ids, num_rows), device=device).t()
    expected = reference.gather_dot(hidden.double(), weight.double(), ids)
    found = triton.gather_dot(hidden, weight, ids)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * size**0.5)


@pytest.mark.parametrize("kind", ["contiguous", "transposed", "distant"])
@pytest.mark.parametrize("dtype", TABLES)
@pytest.mark.parametrize(
    ("lengths", "size"), [([1, 3, 0, 70, 2], 20), ([0, 0], 3), ([], 4), ([1], 300), ([1, 2, 0, 9], 1), ([2], 4100)]
)
def test_gather_sum(device, lengths, size, dtype, kind):
    rows = table(7, size, dtype, device, kind)
    count = torch.tensor(lengths, dtype=torch.int64, device=device)
    starts = count.cumsum(0) - count
    ids = torch.randint(7, (2 * sum(lengths),), device=device)[::2]
    coefficient = torch.randn(2 * sum(lengths), device=device)[::2]
    expected = reference.gather_sum(rows.double(), ids, starts, coefficient.double())
    found = triton.gather_sum(rows, ids, starts, coefficient)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
