"""Blocks of the logit matrix: scored, turned into probabilities, and carried back to the gradients.

The N x V matrix of logits exists one block at a time, in one buffer. Where a block holds every class of its
rows, the forward pass can leave the softmax in the buffer and the gradient needs three matrix products in all;
where the classes too are cut, the logits are scored again on the way back, at the price of a fourth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from vastmax.scoring.links import Link

BLOCK_ELEMENTS = 1 << 24
"""Logits alive at a time: 64 MB in float32. Matrix products reach their full rate well below it."""

MIN_ROWS = 64
"""Fewer rows than this in a block and the products read `weight` more often than they use it."""

TALL_ROWS = 4096
"""Rows of a block whose class rows must be converted to another dtype: tall, so that each is converted once."""


F = TypeVar("F", bound=Callable[..., Any])


def uncompiled(function: F) -> F:
    """Have `torch.compile` call a function as it is: its loop over blocks would be traced once per block."""
    disabled: F = torch.compiler.disable(function)
    return disabled


class RowStatistics(NamedTuple):
    """What a loss needs to know of a row's logits; each (N,), in nats."""

    log_partition: Tensor
    target_logit: Tensor
    mean_logit: Tensor


class Gradients(NamedTuple):
    """Gradients of what a scorer holds, None where one is not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    class_weight: Tensor | None


@dataclass(frozen=True)
class LinearScorer:
    r"""The logits $s_{rc} = f((h_r \cdot w_c + b_c) / T)$ of rows and classes, block by block.

    Args:
        hidden: (N, d) rows.
        weight: (V, d) class rows.
        bias: (V,) or None.
        target: (N,) class ids.
        class_weight: (V,) the weights of the mean logit $\sum_c v_c s_{rc}$, or None if it is not wanted.
        temperature: T.
        link: f, from scores to logits; the identity if None.
        offset: (V,) what is added to the logits after the link, without a gradient of its own; None for nothing.
        block_size: classes in a block; chosen from the shapes if None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    class_weight: Tensor | None = None
    temperature: float = 1.0
    link: Link | None = None
    offset: Tensor | None = None
    block_size: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic: that of the inputs, and at least float32."""
        widest = torch.promote_types(self.hidden.dtype, self.weight.dtype)
        return torch.promote_types(widest, torch.float32)

    def block_shape(self) -> tuple[int, int]:
        """Rows and classes of a block."""
        num_rows, num_classes = self.hidden.shape[0], self.weight.shape[0]
        classes = self.block_size
        if classes is None:
            if self.weight.dtype != self.dtype:
                # The converted class rows of a block, too, stay within the size of a block of logits.
                classes = BLOCK_ELEMENTS // max(min(num_rows, TALL_ROWS), self.weight.shape[1], 1)
            elif num_classes * MIN_ROWS <= BLOCK_ELEMENTS:
                classes = num_classes
            else:
                classes = BLOCK_ELEMENTS // min(max(num_rows, MIN_ROWS), TALL_ROWS)
        classes = min(max(classes, 1), num_classes)
        return min(num_rows, max(1, BLOCK_ELEMENTS // classes)), classes

    def row_blocks(self) -> Iterator[slice]:
        """Slices of rows that are finished one after the other."""
        return _slices(self.hidden.shape[0], self.block_shape()[0])

    def class_blocks(self) -> Iterator[slice]:
        """Slices of classes within a block of rows."""
        return _slices(self.weight.shape[0], self.block_shape()[1])

    def buffer(self) -> Tensor:
        """Memory for the logits of one block, used again for every block."""
        rows, classes = self.block_shape()
        return torch.empty(rows * classes, dtype=self.dtype, device=self.hidden.device)

    def scaled_hidden(self, rows: slice) -> Tensor:
        """`hidden / T`: dividing d numbers a row is cheaper than dividing V logits."""
        hidden = self.hidden[rows].to(self.dtype)
        return hidden if self.temperature == 1.0 else hidden / self.temperature

    def class_rows(self, classes: slice) -> Tensor:
        """The class rows of a block in the dtype of the arithmetic."""
        return self.weight[classes].to(self.dtype)

    def logits(self, rows: slice, classes: slice, buffer: Tensor) -> Tensor:
        """Make the logits of a block in `buffer`: (rows, classes)."""
        return self.to_logits(self.scores(rows, classes, buffer), classes)

    def to_logits(self, scores: Tensor, classes: slice) -> Tensor:
        """Turn the scores of a block into its logits, in place."""
        if self.link is not None:
            scores.copy_(self.link(scores))
        if self.offset is not None:
            scores += self.offset[classes].to(self.dtype)
        return scores

    def scores(self, rows: slice, classes: slice, buffer: Tensor) -> Tensor:
        """Score a block into `buffer`: (rows, classes), as yet without the link."""
        hidden, class_rows = self.scaled_hidden(rows), self.class_rows(classes)
        shape = hidden.shape[0], class_rows.shape[0]
        out = buffer[: shape[0] * shape[1]].view(shape)
        if self.bias is None:
            torch.mm(hidden, class_rows.t(), out=out)
        else:
            bias = self.bias[classes].to(self.dtype) / self.temperature
            torch.addmm(bias, hidden, class_rows.t(), out=out)
        return out

    def statistics(self, rows: slice, buffer: Tensor) -> tuple[RowStatistics, Tensor | None]:
        """Return the statistics of `rows`, and their softmax where one block held every class of them."""
        target = self.target[rows]
        log_partition = torch.full(target.shape, -torch.inf, dtype=self.dtype, device=target.device)
        target_logit = torch.zeros_like(log_partition)
        mean_logit = torch.zeros_like(log_partition)
        probabilities = None
        for classes in self.class_blocks():
            logits = self.logits(rows, classes, buffer)
            row, column = _targets_inside(target, classes)
            target_logit[row] = logits[row, column]
            if self.class_weight is not None:
                mean_logit += logits @ self.class_weight[classes].to(self.dtype)
            # A row whose classes are all masked in this block has the maximum -inf; any finite shift serves it.
            maximum = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(self.dtype).min)
            mass = logits.sub_(maximum).exp_().sum(-1)
            log_partition = torch.logaddexp(log_partition, maximum.squeeze(-1) + mass.log())
            if logits.shape[1] == self.weight.shape[0] and self.link is None:
                probabilities = logits.div_(mass.unsqueeze(-1))
        return RowStatistics(log_partition, target_logit, mean_logit), probabilities

    def backward(
        self,
        rows: slice,
        buffer: Tensor,
        log_partition: Tensor,
        upstream: RowStatistics,
        gradients: Gradients,
        probabilities: Tensor | None = None,
    ) -> None:
        """Add to `gradients` what flows back from the statistics of `rows`.

        The gradient with respect to the logits is
        upstream.log_partition * softmax + upstream.target_logit * onehot + upstream.mean_logit * class_weight.
        """
        for classes in self.class_blocks():
            slope = None
            if probabilities is None:
                logits = self.scores(rows, classes, buffer)
                if self.link is not None:
                    slope = self.link.slope(logits)
                self.to_logits(logits, classes)
                if gradients.class_weight is not None:
                    gradients.class_weight[classes].addmv_(logits.t(), upstream.mean_logit)
                grad = logits.sub_(log_partition.unsqueeze(-1)).exp_()
            else:
                grad = probabilities
            grad.mul_(upstream.log_partition.unsqueeze(-1))
            row, column = _targets_inside(self.target[rows], classes)
            grad[row, column] += upstream.target_logit[row]
            if self.class_weight is not None:
                grad.addr_(upstream.mean_logit, self.class_weight[classes].to(self.dtype))
            if slope is not None:
                grad.mul_(slope)
            if gradients.hidden is not None:
                gradients.hidden[rows].addmm_(grad, self.class_rows(classes), alpha=1 / self.temperature)
            if gradients.weight is not None:
                gradients.weight[classes].addmm_(grad.t(), self.scaled_hidden(rows))
            if gradients.bias is not None:
                gradients.bias[classes].add_(grad.sum(0), alpha=1 / self.temperature)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
        """The tensors scored, in the order of the constructor."""
        return self.hidden, self.weight, self.bias, self.target, self.class_weight

    def options(self) -> tuple[float, Link | None, Tensor | None, int | None]:
        """The rest of the constructor's arguments."""
        return self.temperature, self.link, self.offset, self.block_size

    def differentiable(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The tensors that may want a gradient, in the order of `Gradients`."""
        return self.hidden, self.weight, self.bias, self.class_weight

    def empty_gradients(self, wanted: tuple[bool, ...]) -> Gradients:
        """Zeros, in the dtype of the arithmetic, for the gradients that are wanted."""
        return Gradients(
            *(
                torch.zeros(tensor.shape, dtype=self.dtype, device=tensor.device)
                if want and tensor is not None
                else None
                for want, tensor in zip(wanted, self.differentiable(), strict=True)
            )
        )


def _slices(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, max(step, 1)):
        yield slice(start, min(start + step, total))


def _targets_inside(target: Tensor, classes: slice) -> tuple[Tensor, Tensor]:
    """Rows whose target lies in `classes`, and the target's column within them."""
    inside = (target >= classes.start) & (target < classes.stop)
    row = inside.nonzero().squeeze(-1)
    return row, target[row] - classes.start
