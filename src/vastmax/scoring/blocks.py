"""Blocks of the logit matrix: scored, turned into probabilities, and carried back to the gradients.

The N x V matrix of logits exists one block at a time, in one buffer. Where the buffer holds every class of some
rows, the forward pass leaves their exponentials in it and the gradient needs three matrix products in all; where
it does not, the logits are scored again on the way back, at the price of a fourth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vastmax.kernels import implementation
from vastmax.kernels.reference import BlockSums, TargetPlaces
from vastmax.scoring.links import Link
from vastmax.scoring.partition import RowStatistics, SplitPartition, merged
from vastmax.scoring.products import multiplications, multiply, products

BLOCK_ELEMENTS = 1 << 25
"""Logits alive at a time where a block of rows is held: 128 MB in float32, 256 rows of 131,072 classes. With half
as many rows a product that reads or writes all class rows takes a fifth longer."""

HELD_ROWS = 512
"""Rows of such a block at most: with more of them no product is faster."""

TILE_ELEMENTS = 1 << 23
"""Logits scored at a time of such a block: 32 MB, partly still in a cache when they are exponentiated."""

CUT_ELEMENTS = 1 << 22
"""Logits alive at a time where none are held."""

MIN_ROWS = 64
"""Fewer rows than this in a block and the products read `weight` more often than they use it."""

MIN_ROUNDED_ROWS = 256
"""The same for products that are several times faster."""

TALL_ROWS = 4096
"""Rows of a block whose class rows must be converted to another dtype: tall, so that each is converted once."""


class HeldTile(NamedTuple):
    """Exponentials (R, C) of the logits of a block less their rows' maximum (R,) in it; 0 at the targets."""

    exponentials: Tensor
    maximum: Tensor


class BlockShape(NamedTuple):
    """How the logits are cut: rows and classes of a block, and whether all blocks of some rows are held."""

    rows: int
    classes: int
    held: bool


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
        class_weight: (V,) the weights v of $\sum_c v_c \log p_{rc}$, or None if that is not wanted.
        temperature: T.
        link: f, from scores to logits; the identity if None.
        offset: (V,) what is added to the logits after the link, without a gradient of its own; None for nothing.
        block_size: classes in a block; chosen from the shapes if None.
        filter_eps: leave a class out of the gradients of a block of rows if its probability is below this in all
            of them and it is the target of none; None to leave out nothing.
        product_dtype: what the factors of matrix products are rounded to; None for no rounding.
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
    filter_eps: float | None = None
    product_dtype: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic: that of the inputs, and at least float32."""
        widest = torch.promote_types(self.hidden.dtype, self.weight.dtype)
        return torch.promote_types(widest, torch.float32)

    def arithmetic(self) -> AbstractContextManager[None]:
        """Within it the products of blocks are computed as this scorer says, autocast or not."""
        return self._products(self.product_dtype if self.filter_eps is None else None)

    def _products(self, dtype: torch.dtype | None) -> AbstractContextManager[None]:
        return products(dtype, self.hidden.device, self.dtype, multiplications(self.hidden, self.weight))

    def block_shape(self) -> BlockShape:
        """Return how the logits are cut."""
        num_rows, num_classes = self.hidden.shape[0], self.weight.shape[0]
        converted = self.weight.dtype != self.dtype
        rounded = self.product_dtype is not None and self.filter_eps is None
        min_rows = min(num_rows, MIN_ROUNDED_ROWS if rounded else MIN_ROWS)
        if self.block_size is not None:
            classes = min(self.block_size, num_classes)
            rows = max(1, BLOCK_ELEMENTS // classes)
            held = classes == num_classes
        elif self.link is None and not converted and num_classes * min_rows <= BLOCK_ELEMENTS:
            rows = min(max(1, BLOCK_ELEMENTS // num_classes), HELD_ROWS)
            classes = TILE_ELEMENTS // max(min(num_rows, rows), 1)
            held = True
        else:
            # The converted class rows of a block, too, stay within the size of a block of logits.
            width = max(min(num_rows, TALL_ROWS), min_rows, self.weight.shape[1] if converted else 1, 1)
            elements = min(CUT_ELEMENTS, BLOCK_ELEMENTS)
            classes = elements // width
            rows = max(1, elements // max(min(classes, num_classes), 1))
            held = False
        return BlockShape(min(num_rows, rows), min(max(classes, 1), num_classes), held and self.link is None)

    def row_blocks(self) -> Iterator[slice]:
        """Slices of rows that are finished one after the other."""
        return slices(0, self.hidden.shape[0], max(self.block_shape().rows, 1))

    def class_blocks(self) -> Iterator[slice]:
        """Slices of classes within a block of rows."""
        return slices(0, self.weight.shape[0], self.block_shape().classes)

    def buffer(self) -> Tensor:
        """Memory for the logits that are alive at a time, used again for the next."""
        rows, classes, held = self.block_shape()
        size = rows * (self.weight.shape[0] if held else classes)
        return torch.empty(size, dtype=self.dtype, device=self.hidden.device)

    def scaled_hidden(self, rows: slice) -> Tensor:
        """`hidden / T`: dividing d numbers a row is cheaper than dividing V logits."""
        hidden = self.hidden[rows].to(self.dtype)
        return hidden if self.temperature == 1.0 else hidden / self.temperature

    def class_rows(self, classes: slice | Tensor) -> Tensor:
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
        first = shape[0] * classes.start if self.block_shape().held else 0
        out = buffer[first : first + shape[0] * shape[1]].view(shape)
        if self.bias is not None:
            out.copy_(self.bias[classes].to(self.dtype) / self.temperature)
        return multiply(hidden, class_rows.t(), out, add=self.bias is not None)

    def statistics(self, rows: slice, buffer: Tensor) -> tuple[SplitPartition, Tensor, list[HeldTile] | None]:
        """Return what the statistics of `rows` are made of, with the exponentials where all classes' are held.

        Beside the partition these are the weighted log-probabilities (R,), 0 where no class weights are given.
        """
        target = self.target[rows]
        target_logit = torch.zeros(target.shape, dtype=self.dtype, device=target.device)
        least = torch.finfo(self.dtype).min
        others = BlockSums(torch.full_like(target_logit, least), torch.zeros_like(target_logit))
        weighted, level = torch.zeros_like(target_logit), None
        held: list[HeldTile] | None = [] if self.block_shape().held else None
        for classes in self.class_blocks():
            logits = self.logits(rows, classes, buffer)
            if self.class_weight is not None:
                # Less a logit of the row, lest large numbers are summed that cancel.
                level = logits.amax(-1, keepdim=True).clamp_(min=least) if level is None else level
                weighted += (logits - level) @ self.class_weight[classes].to(self.dtype)
            places = TargetPlaces.of(target, classes.start, classes.stop)
            target_logit = torch.where(places.inside, places.exchange_(logits, -torch.inf), target_logit)
            if held is None:
                sums = implementation("row_sums", logits)(logits)
            else:
                sums = implementation("exponentials_", logits)(logits)
                held.append(HeldTile(logits, sums.maximum))
            others = merged(others, sums)
        partition = SplitPartition.of(target_logit, others)
        if self.class_weight is not None and level is not None:
            below = (level.squeeze(-1) - partition.maximum) - partition.log_mass
            weighted += below * self.class_weight.to(self.dtype).sum()
        return partition, weighted, held

    def backward(
        self,
        rows: slice,
        buffer: Tensor,
        partition: SplitPartition,
        upstream: RowStatistics,
        gradients: Gradients,
        held: list[HeldTile] | None = None,
    ) -> None:
        """Add to `gradients` what flows back from the statistics of `rows`.

        The gradient with respect to the logits is upstream.log_prob * (onehot - softmax)
        + upstream.target_logit * onehot + upstream.log_partition * softmax
        + upstream.weighted_log_prob * (class_weight - class_weight.sum() * softmax).
        """
        if self.class_weight is not None:
            of_partition = -upstream.weighted_log_prob * self.class_weight.to(self.dtype).sum()
            upstream = upstream._replace(log_partition=upstream.log_partition + of_partition)
        of_softmax, of_target = upstream.slopes(partition.log_prob)
        if held is not None and self.filter_eps is None and self.class_weight is None:
            self._add_held(held, rows, partition, of_softmax, of_target, gradients)
            return
        for index, classes in enumerate(self.class_blocks()):
            slope = None
            targets = TargetPlaces.of(self.target[rows], classes.start, classes.stop)
            if held is not None:
                grad, maximum = held[index]
                to_probability = partition.probability(maximum)
            else:
                grad = self.scores(rows, classes, buffer)
                to_probability = torch.ones_like(of_softmax)
                if self.link is not None:
                    slope = self.link.slope(grad)
                self.to_logits(grad, classes)
                if gradients.class_weight is not None:
                    log_p = (grad - partition.maximum.unsqueeze(-1)).sub_(partition.log_mass.unsqueeze(-1))
                    gradients.class_weight[classes] += log_p.t() @ upstream.weighted_log_prob
                targets.exchange_(grad, -torch.inf)
                # Probabilities where they are to be filtered, and else the gradient at once.
                inside = to_probability if self.filter_eps is not None else of_softmax
                inside = inside * (-partition.log_mass).exp()
                implementation("softmax_gradient_", grad)(grad, partition.maximum, inside)
            kept: slice | Tensor = classes
            if self.filter_eps is not None:
                places, targets = self._kept(grad, to_probability, targets)
                block, whole_slope = grad, slope
                grad, kept = block.index_select(1, places), places + classes.start
                slope = None if slope is None else slope.index_select(1, places)
                if self.product_dtype is not None:
                    rest = block.index_fill_(1, places, 0.0)
                    rest = rest if whole_slope is None else rest.mul_(whole_slope)
                    with self._products(self.product_dtype):
                        self._add_scaled(rest, of_softmax * to_probability, rows, classes, gradients)
            if held is not None or self.filter_eps is not None:
                grad.mul_((of_softmax * to_probability).unsqueeze(-1))
            targets.exchange_(grad, of_target)
            if self.class_weight is not None:
                grad.addr_(upstream.weighted_log_prob, self.class_weight[kept].to(self.dtype))
            if slope is not None:
                grad.mul_(slope)
            self._add_gradients(grad, rows, kept, gradients)

    def _add_held(
        self,
        held: list[HeldTile],
        rows: slice,
        partition: SplitPartition,
        of_softmax: Tensor,
        of_target: Tensor,
        gradients: Gradients,
    ) -> None:
        """Carry the gradient of the logits of `rows` on where nothing but the softmax and the targets is in it.

        The factors of the products are scaled and the targets added apart, rather than in R x V logits.
        """
        target, hidden = self.target[rows], self.scaled_hidden(rows)
        for classes, (exponentials, maximum) in zip(self.class_blocks(), held, strict=True):
            scale = of_softmax * partition.probability(maximum)
            self._add_scaled(exponentials, scale, rows, classes, gradients)
        if gradients.hidden is not None:
            class_rows = self.weight[target].to(self.dtype)
            gradients.hidden[rows].addcmul_(class_rows, of_target.unsqueeze(-1), value=1 / self.temperature)
        if gradients.weight is not None:
            gradients.weight.index_add_(0, target, hidden * of_target.unsqueeze(-1))
        if gradients.bias is not None:
            gradients.bias.index_add_(0, target, of_target, alpha=1 / self.temperature)

    def _add_scaled(self, block: Tensor, scale: Tensor, rows: slice, classes: slice, gradients: Gradients) -> None:
        """Carry on the gradient of the logits of `rows` and `classes` that is a block (R, C) times `scale` (R,)."""
        scale = scale.unsqueeze(-1)
        if gradients.hidden is not None:
            found = multiply(block, self.class_rows(classes), torch.empty_like(gradients.hidden[rows]))
            gradients.hidden[rows].addcmul_(found, scale, value=1 / self.temperature)
        if gradients.weight is not None:
            multiply(block.t(), self.scaled_hidden(rows) * scale, gradients.weight[classes], add=True)
        if gradients.bias is not None:
            gradients.bias[classes].add_((block.t() @ scale).squeeze(-1), alpha=1 / self.temperature)

    def _kept(self, block: Tensor, to_probability: Tensor, targets: TargetPlaces) -> tuple[Tensor, TargetPlaces]:
        """Return the columns of a block that are not negligible, and where the targets stand among them.

        How many they are is waited for, on any device: that is what the smaller products are made of.
        """
        largest = implementation("column_maxima", block)(block, to_probability)
        column = targets.column.squeeze(-1)
        largest.scatter_reduce_(0, column, torch.where(targets.inside, torch.inf, 0.0).to(largest), "amax")
        places = (largest >= self.filter_eps).nonzero().squeeze(-1)
        found = torch.searchsorted(places, column).clamp(max=max(len(places) - 1, 0))
        return places, TargetPlaces(targets.inside, found.unsqueeze(-1))

    def _add_gradients(self, grad: Tensor, rows: slice, classes: slice | Tensor, gradients: Gradients) -> None:
        """Carry the gradient of the logits of `rows` and `classes` on to what made them."""
        if gradients.hidden is not None:
            found = multiply(grad, self.class_rows(classes), torch.empty_like(gradients.hidden[rows]))
            gradients.hidden[rows].add_(found, alpha=1 / self.temperature)
        if isinstance(classes, slice):
            if gradients.weight is not None:
                multiply(grad.t(), self.scaled_hidden(rows), gradients.weight[classes], add=True)
            if gradients.bias is not None:
                gradients.bias[classes].add_(grad.sum(0), alpha=1 / self.temperature)
        else:
            if gradients.weight is not None:
                found = gradients.weight.new_empty(len(classes), self.hidden.shape[1])
                gradients.weight.index_add_(0, classes, multiply(grad.t(), self.scaled_hidden(rows), found))
            if gradients.bias is not None:
                gradients.bias.index_add_(0, classes, grad.sum(0), alpha=1 / self.temperature)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
        """The tensors scored, in the order of the constructor."""
        return self.hidden, self.weight, self.bias, self.target, self.class_weight

    def options(self) -> tuple[float, Link | None, Tensor | None, int | None, float | None, torch.dtype | None]:
        """The rest of the constructor's arguments."""
        return self.temperature, self.link, self.offset, self.block_size, self.filter_eps, self.product_dtype

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


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut a range into slices of at most `step`."""
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))
