"""The softmax of blocks of logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BlockSums(NamedTuple):
    """What a row's log-partition over a block is made of; each (R,).

    Attributes:
        maximum: the largest logit, or the least finite number where all are -inf.
        mass: the sum of exp(logit - maximum).
    """

    maximum: Tensor
    mass: Tensor


class TargetPlaces(NamedTuple):
    """Where the rows' targets stand in a block of logits (R, C), if they do.

    Attributes:
        inside: (R,) bool, whether the block has the row's target.
        column: (R, 1) int64, the target's column, 0 where it has none.
    """

    inside: Tensor
    column: Tensor

    @classmethod
    def of(cls, target: Tensor, start: int, stop: int) -> TargetPlaces:
        """Find the targets (R,) in a block of the classes from `start` to `stop`."""
        inside = (target >= start) & (target < stop)
        return cls(inside, torch.where(inside, target - start, 0).unsqueeze(-1))

    def exchange_(self, block: Tensor, values: Tensor | float) -> Tensor:
        """Put values (R,) at the targets; return what stood there (R,), or in column 0 where there is none."""
        if block.shape[1] == 0:
            return block.new_zeros(len(block))
        before = block.gather(1, self.column)
        after = values.unsqueeze(-1) if isinstance(values, Tensor) else values
        block.scatter_(1, self.column, torch.where(self.inside.unsqueeze(-1), after, before))
        return before.squeeze(-1)


def exponentials_(logits: Tensor) -> BlockSums:
    r"""Replace logits (R, C) by $e^{s_{rc} - \max_c s_{rc}}$ and return maxima and sums of the rows."""
    # A row whose classes are all masked has the maximum -inf; any finite shift serves it.
    maximum = logits.amax(-1).clamp_(min=torch.finfo(logits.dtype).min)
    mass = logits.sub_(maximum.unsqueeze(-1)).exp_().sum(-1)
    return BlockSums(maximum, mass)


def row_sums(logits: Tensor) -> BlockSums:
    """Return maxima and sums of exponentials as `exponentials_` does, and leave the logits (R, C) as they are."""
    maximum = logits.amax(-1).clamp(min=torch.finfo(logits.dtype).min)
    return BlockSums(maximum, (logits - maximum.unsqueeze(-1)).exp_().sum(-1))


def softmax_gradient_(logits: Tensor, log_partition: Tensor, upstream: Tensor) -> None:
    r"""Replace logits (R, C) by $u_r e^{s_{rc} - \log Z_r}$: what flows back to them from the log-partition.

    Args:
        logits: (R, C), overwritten.
        log_partition: (R,) of all classes.
        upstream: (R,) u.
    """
    logits.sub_(log_partition.unsqueeze(-1)).exp_().mul_(upstream.unsqueeze(-1))


def column_maxima(block: Tensor, scale: Tensor) -> Tensor:
    """Return the largest of each column (C,) of a block (R, C) whose rows are multiplied by `scale` (R,)."""
    return (block * scale.unsqueeze(-1)).amax(0)
