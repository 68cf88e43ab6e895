"""What the optimizer tests share: sparse gradients, and a look at all that a step may change."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.testing import assert_close

from vastmax.optim import SGD, LazyAdamW, RowwiseAdagrad

OPTIMIZERS = {
    "LazyAdamW": LazyAdamW,
    "LazyAdamW-by-row": partial(LazyAdamW, rowwise_second_moment=True, betas=(0.0, 0.99)),
    "RowwiseAdagrad": RowwiseAdagrad,
    "SGD": partial(SGD, momentum=0.9),
}


def sparse(rows: Sequence[int] | Tensor, values: Tensor, num_rows: int) -> Tensor:
    """A sparse gradient (num_rows, ...) with `values` (n, ...) in `rows` (n,), which may repeat."""
    indices = torch.as_tensor(rows, dtype=torch.int64).view(1, -1)
    return torch.sparse_coo_tensor(indices, values, (num_rows, *values.shape[1:]), check_invariants=True)


def random_rows(shape: Sequence[int], touched: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A sparse gradient of `shape` with random values in `touched` distinct rows."""
    rows = torch.randperm(shape[0], generator=generator)[:touched]
    return sparse(rows, torch.randn(touched, *shape[1:], generator=generator, dtype=dtype), shape[0])


def bits(param: Tensor, optimizer: Optimizer) -> dict[str, Tensor]:
    """Copies of a parameter and of all of its state."""
    tensors = {"weight": param.detach(), **optimizer.state[param]}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name], rtol=0.0, atol=0.0)
