"""The logits of every class, some rows at a time in one buffer, to be worked on a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vastmax.scoring import blocks
from vastmax.scoring.class_gradients import arithmetic

PART_ELEMENTS = 1 << 20
"""Logits in a part on a CPU, of as many rows for each thread: 4 MB in float32. What is made of a part stays in a
cache, and in memory that the process has; larger tensors would be given back, and cleared page by page anew."""

COPIES = 4
"""Parts in a block of `BLOCK_ELEMENTS` at least: several tensors of the size of a part are made of each."""


class LogitRows(NamedTuple):
    """Some rows, and their logits in memory that is used again for the next."""

    rows: slice
    logits: Tensor


class LogitBlock(NamedTuple):
    """Rows that are scored at once, as many as a matrix product wants, and their logits (R, V)."""

    rows: slice
    logits: Tensor
    together: int

    def parts(self) -> Iterator[LogitRows]:
        """The block in parts of a few rows.

        What is kept of a part is to be kept in a tensor that was there before. glibc gives tensors of less than 32
        MB back to its heap, not to the system. A small one that outlives a part stays there behind the hole that
        the part leaves, into which the next does not fit: the process would grow by a hole for each part.
        """
        width = self.together * self.logits.shape[1]
        step = max(1, blocks.BLOCK_ELEMENTS // (COPIES * width))
        if self.logits.device.type == "cpu":
            threads = torch.get_num_threads()
            step = min(step, threads * max(1, round(PART_ELEMENTS / (width * threads))))
        for part in blocks.slices(self.rows.start, self.rows.stop, self.together * step):
            yield LogitRows(part, self.logits[part.start - self.rows.start : part.stop - self.rows.start])


def logit_blocks(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, together: int = 1) -> Iterator[LogitBlock]:
    """Score every class for all rows, a block of them after the other in one buffer of `BLOCK_ELEMENTS` at most.

    Args:
        hidden: (N, d) rows.
        weight: (V, d) class rows.
        bias: (V,) or None.
        together: rows that are not parted, where they belong together: a divisor of N.
    """
    dtype = arithmetic(hidden, weight)
    num_rows, num_classes = hidden.shape[0], weight.shape[0]
    step = together * max(1, min(blocks.BLOCK_ELEMENTS // num_classes, blocks.HELD_ROWS) // together)
    buffer = torch.empty(min(step, num_rows), num_classes, dtype=dtype, device=hidden.device)
    for rows in blocks.slices(0, num_rows, step):
        logits = buffer[: rows.stop - rows.start]
        for classes in class_blocks(weight, dtype):
            torch.mm(hidden[rows].to(dtype), weight[classes].to(dtype).t(), out=logits[:, classes])
        yield LogitBlock(rows, logits if bias is None else logits.add_(bias.to(dtype)), together)


def class_blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """All classes at once, or so few that their rows, converted to another dtype, are one block of memory."""
    num_classes, width = weight.shape
    step = num_classes if weight.dtype == dtype else max(1, blocks.BLOCK_ELEMENTS // max(width, 1))
    return blocks.slices(0, num_classes, step)
