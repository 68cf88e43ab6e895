"""Gradients for the optimizer tests: one random sequence, as sparse tensors and as their dense equals."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sparse(rows: Sequence[int] | Tensor, values: Tensor, num_rows: int) -> Tensor:
    """A sparse gradient (num_rows, ...) with `values` (n, ...) in `rows` (n,), which may repeat."""
    indices = torch.as_tensor(rows, dtype=torch.int64).view(1, -1)
    return torch.sparse_coo_tensor(indices, values, (num_rows, *values.shape[1:]), check_invariants=True)


def random_rows(shape: Sequence[int], touched: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A sparse gradient of `shape` with random values in `touched` distinct rows."""
    rows = torch.randperm(shape[0], generator=generator)[:touched]
    return sparse(rows, torch.randn(touched, *shape[1:], generator=generator, dtype=dtype), shape[0])
