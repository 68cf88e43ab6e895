"""The mean over processes of gradients that may be sparse, of whole rows, and differ in which rows they have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from vastmax.kernels import implementation
from vastmax.optim.row_optimizer import compute_dtype, summed_rows
from vastmax.scoring.class_gradients import gather_sum

Rows = tuple[Tensor, Tensor]
"""Ids (S,), distinct in what a process has, and their rows of a gradient (S, ...)."""

ABSENT, DENSE = -1, -2
"""What a process has of a gradient, where that is not a number of rows."""


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    r"""Make `.grad` of every parameter the mean over the processes of what it is there, none counting as zero.

    $$g \leftarrow \frac 1 P \sum_{p=1}^{P} g_p$$

    It is sparse and coalesced, with the rows that any process has, unless it is dense in one of them, and stays
    None where it is None in all. All processes sum in the same order, and so have the same to the last bit.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    for some in alike.values():  # whatever their number, in at most four exchanges
        _average(some, group)


def _average(parameters: list[Tensor], group: dist.ProcessGroup) -> None:
    sizes = _gathered(torch.tensor([_size(x) for x in parameters], device=parameters[0].device), group)
    dense, sparse = [], []
    for parameter, of_parameter in zip(parameters, sizes.t().tolist(), strict=True):
        if DENSE in of_parameter:
            dense.append(parameter)
        elif max(of_parameter) > ABSENT:
            sparse.append((parameter, [max(size, 0) for size in of_parameter]))
    if dense:
        _average_dense(dense, group)
    if sparse:
        _average_sparse([parameter for parameter, _ in sparse], [size for _, size in sparse], group)


def _size(parameter: Tensor) -> int:
    grad = parameter.grad
    if grad is None:
        return ABSENT
    if not grad.is_sparse:
        return DENSE
    if not grad.is_coalesced():
        rows, values = summed_rows(grad)
        grad = parameter.grad = _of_rows(parameter, rows, values)
    return grad._nnz()


def _average_dense(parameters: list[Tensor], group: dist.ProcessGroup) -> None:
    grads = [torch.zeros_like(x) if x.grad is None else x.grad.to_dense() for x in parameters]
    total = torch.cat([grad.reshape(-1) for grad in grads]).div_(dist.get_world_size(group))
    dist.all_reduce(total, group=group)
    for parameter, mean in zip(parameters, total.split([x.numel() for x in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter)


def _average_sparse(parameters: list[Tensor], sizes: list[list[int]], group: dist.ProcessGroup) -> None:
    """Exchange the rows of parameters, of which `sizes` says how many each process has."""
    own = [_rows_of(x) for x in parameters]
    widths = [x[0].numel() for x in parameters]
    ids = _exchanged([ids for ids, _ in own], sizes, group)
    values = _exchanged(
        [rows.reshape(-1) for _, rows in own],
        [[size * width for size in of_parameter] for of_parameter, width in zip(sizes, widths, strict=True)],
        group,
    )
    for parameter, at, rows, width in zip(parameters, ids, values, widths, strict=True):
        classes, starts, order = implementation("segments", parameter)(at, len(parameter))
        share = torch.full_like(at, 1 / dist.get_world_size(group), dtype=compute_dtype(parameter))
        total = gather_sum(rows.view(-1, width), order, starts, share).to(parameter.dtype)
        parameter.grad = _of_rows(parameter, classes, total.view(len(classes), *parameter.shape[1:]))


def _rows_of(parameter: Tensor) -> Rows:
    if parameter.grad is None:
        return parameter.new_empty(0, dtype=torch.int64), parameter.new_empty(0)
    return parameter.grad._indices()[0], parameter.grad._values()


def _of_rows(parameter: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(
        ids.unsqueeze(0), rows, parameter.shape, is_coalesced=True, check_invariants=False
    )


def _exchanged(own: list[Tensor], sizes: list[list[int]], group: dist.ProcessGroup) -> list[Tensor]:
    """Return for each tensor those of all processes, one behind the other; `sizes` says how long each is.

    What is sent is as long everywhere as the longest.
    """
    of_process = [list(process) for process in zip(*sizes, strict=True)]
    sent = own[0].new_zeros(max(map(sum, of_process)))
    torch.cat(own, out=sent[: sum(map(len, own))])
    parts = [
        row[: sum(lengths)].split(lengths) for row, lengths in zip(_gathered(sent, group), of_process, strict=True)
    ]
    return [torch.cat(of_tensor) for of_tensor in zip(*parts, strict=True)]


def _gathered(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The tensors of all processes, of the same shape everywhere, stacked by rank."""
    found = own.new_empty(dist.get_world_size(group), *own.shape)
    dist.all_gather(list(found), own, group=group)
    return found
