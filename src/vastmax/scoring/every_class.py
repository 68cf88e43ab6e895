"""Every class, block by block: the log-partition, the target's logit, and losses that are functions of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vastmax import checking
from vastmax.arithmetic import without_autocast
from vastmax.checking import at_hand, require
from vastmax.differentiation import check_not_batched, graph_of_its_own, has_direction
from vastmax.fused import Fused, Shapes, differentiable_by, keep, kept
from vastmax.kernels import has_kernel, implementation
from vastmax.scoring import plain as torchs
from vastmax.scoring.blocks import Gradients, LinearScorer
from vastmax.scoring.class_gradients import arithmetic
from vastmax.scoring.focal import focal
from vastmax.scoring.links import Link, SoftCap, check_link
from vastmax.scoring.partition import RowStatistics, SplitPartition
from vastmax.validation import (
    check_class_rows,
    check_finite,
    check_hidden,
    check_per_class,
    check_positive_int,
    check_target,
)


class LogPartition(NamedTuple):
    """The two numbers that a row's exact loss is made of, each (...,), in nats."""

    log_partition: Tensor
    target_logit: Tensor | None


SCORER = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight, float temperature, "
    "str? link, Tensor? offset, int? block_size, float? filter_eps, ScalarType? product_dtype"
)
"""The arguments of a scorer, in the words of torch's operators."""


class _Statistics(Fused):
    """Row statistics of a scorer's arguments, whose gradient scores the logits again, block by block."""

    arguments = SCORER

    @staticmethod
    def num_outputs(*_: Any) -> int:
        return 4

    @staticmethod
    def shapes(_: list[int], hidden: Tensor, weight: Tensor, *__: Any) -> Shapes:
        per_row = [hidden.new_empty(hidden.shape[0], dtype=arithmetic(hidden, weight)) for _ in range(7)]
        return per_row[:4], list(per_row[4:])

    @staticmethod
    def plain(*scorer: Any) -> tuple[Tensor, ...]:
        return tuple(torchs.statistics(LinearScorer(*scorer)))

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        scorer = LinearScorer(*arguments)
        found = scorer.hidden.new_empty(4, len(scorer.hidden), dtype=scorer.dtype)
        with scorer.arithmetic():
            buffer = scorer.buffer()
            for rows in scorer.row_blocks():
                partition, weighted, _ = scorer.statistics(rows, buffer)
                found[:, rows] = torch.stack([*partition, weighted])
        partition = SplitPartition(*found[:3])
        keep(ctx, arguments, *partition)
        return tuple(RowStatistics.of(partition, found[3]))

    @staticmethod
    @differentiable_by(plain)
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        arguments, split = kept(ctx)
        scorer, partition, wanted = LinearScorer(*arguments), SplitPartition(*split), ctx.needs_input_grad
        gradients = scorer.empty_gradients((*wanted[:3], wanted[4]))
        with scorer.arithmetic():
            buffer = scorer.buffer()
            for rows in scorer.row_blocks():
                row_partition = SplitPartition(*(x[rows] for x in partition))
                row_upstream = RowStatistics(*(grad[rows] for grad in upstream))
                scorer.backward(rows, buffer, row_partition, row_upstream, gradients)
        *of_rows, of_class_weight = _as_their_tensors(gradients, scorer.differentiable())
        return *of_rows, None, of_class_weight, *(None for _ in arguments[5:])


class _TiledStatistics(Fused):
    """The target's log-probability and log Z by a kernel that scores tile by tile, and again on the way back."""

    arguments = "Tensor hidden, Tensor weight, Tensor? bias, Tensor target, str? link, float? filter_eps"

    @staticmethod
    def num_outputs(*_: Any) -> int:
        return 3

    @staticmethod
    def shapes(_: list[int], hidden: Tensor, weight: Tensor, *__: Any) -> Shapes:
        per_row = [hidden.new_empty(hidden.shape[0], dtype=arithmetic(hidden, weight)) for _ in range(6)]
        return per_row[:3], list(per_row[3:])

    @staticmethod
    def plain(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        link: SoftCap | None,
        filter_eps: float | None,
    ) -> tuple[Tensor, ...]:
        return tuple(torchs.statistics(LinearScorer(hidden, weight, bias, target, link=link))[:3])

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        link: SoftCap | None,
        filter_eps: float | None,
    ) -> tuple[Tensor, ...]:
        sums_of = implementation("split_partition", hidden, weight, bias)
        softcap = None if link is None else link.softcap
        partition = SplitPartition.of(*sums_of(hidden, weight, bias, target, softcap=softcap))
        keep(ctx, (hidden, weight, bias, target, link, filter_eps), *partition)
        return partition.log_prob, partition.target_logit, partition.log_partition

    @staticmethod
    @differentiable_by(plain)
    def backward(
        ctx: Any, log_prob: Tensor, target_logit: Tensor, log_partition: Tensor
    ) -> tuple[Tensor | None, ...]:
        (*inputs, target, link, filter_eps), split = kept(ctx)
        partition = SplitPartition(*split)
        upstream = RowStatistics(log_prob, target_logit, log_partition, torch.zeros_like(log_prob))
        gradients = implementation("split_partition_backward", *inputs)(
            *inputs,
            target,
            partition.maximum,
            partition.log_mass,
            *upstream.slopes(partition.log_prob),
            wanted=ctx.needs_input_grad[:3],
            softcap=None if link is None else link.softcap,
            filter_eps=filter_eps,
        )
        return *_as_their_tensors(gradients, inputs), None, None, None


def _in_tiles(scorer: LinearScorer) -> bool:
    """Whether a kernel that scores tile by tile knows all that this scorer asks for."""
    plain = scorer.temperature == 1.0 and scorer.offset is None and scorer.class_weight is None
    plain = plain and (scorer.link is None or isinstance(scorer.link, SoftCap)) and scorer.block_size is None
    return (
        plain
        and scorer.hidden.shape[0] > 0
        and has_kernel("split_partition", scorer.hidden, scorer.weight, scorer.bias)
    )


def _as_their_tensors(gradients: Gradients, tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Give each gradient the dtype of what it is the gradient of."""
    return [
        None if gradient is None or tensor is None else gradient.to(tensor.dtype)
        for gradient, tensor in zip(gradients, tensors, strict=True)
    ]


class RowLoss(NamedTuple):
    r"""The cross-entropy of rows as a function of their statistics.

    $$\ell_r = w_r \Big( v_{y_r} \big( (1 - \epsilon) f(p_{r y_r}) + \text{z\_loss} (\log Z_r)^2 \big)
      - \frac \epsilon V \sum_c v_c \log p_{rc} \Big)$$

    Attributes:
        row_weight: (N,) w.
        target_weight: (N,) v of the targets.
        num_classes: V.
        label_smoothing: epsilon.
        z_loss: its weight.
        focal_gamma: gamma of $f(p) = -(1 - p)^\gamma \log p$.
    """

    row_weight: Tensor
    target_weight: Tensor
    num_classes: int
    label_smoothing: float
    z_loss: float
    focal_gamma: float

    def __call__(self, statistics: RowStatistics, rows: slice) -> Tensor:
        """Return the loss of `rows`, whose statistics these are."""
        log_p, _, log_z, weighted_log_p = statistics
        row_weight, target_weight = self.row_weight[rows], self.target_weight[rows]
        # A row of no weight counts for nothing, though its target's log-probability were -inf.
        log_p = log_p.masked_fill(row_weight * target_weight == 0, 0.0)
        loss = (1 - self.label_smoothing) * focal(log_p, self.focal_gamma)
        if self.z_loss > 0:  # for the square may be infinite
            loss = loss + self.z_loss * log_z.square()
        loss = target_weight * loss
        if self.label_smoothing > 0:
            loss = loss - self.label_smoothing / self.num_classes * weighted_log_p
        return row_weight * loss


def _gradient(row_loss: RowLoss, statistics: RowStatistics, rows: slice) -> tuple[Tensor, RowStatistics]:
    """Return the sum of the rows' losses and its derivative with respect to the statistics."""
    leaves = RowStatistics(*(x.detach().requires_grad_() for x in statistics))
    with torch.enable_grad(), graph_of_its_own():
        total = row_loss(leaves, rows).sum()
    return total.detach(), RowStatistics(*torch.autograd.grad(total, leaves, materialize_grads=True))


class _SummedLoss(Fused):
    """A sum over rows whose gradient is made in the forward pass, while each block's softmax is at hand."""

    arguments = (
        f"{SCORER}, Tensor row_weight, Tensor target_weight, int num_classes, float label_smoothing, float z_loss, "
        "float focal_gamma"
    )

    @staticmethod
    def shapes(wanted: list[int], hidden: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> Shapes:
        dtype = arithmetic(hidden, weight)
        made = [
            None if x is None or i not in wanted else x.new_empty(x.shape, dtype=dtype)
            for i, x in enumerate((hidden, weight, bias))
        ]
        return [hidden.new_empty((), dtype=dtype)], made

    @staticmethod
    def plain(*arguments: Any) -> Tensor:
        scorer, row_loss = LinearScorer(*arguments[:11]), RowLoss(*arguments[11:])
        return row_loss(torchs.statistics(scorer), slice(None)).sum()

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        scorer, row_loss = LinearScorer(*arguments[:11]), RowLoss(*arguments[11:])
        gradients = scorer.empty_gradients((*ctx.needs_input_grad[:3], False))
        total = scorer.hidden.new_zeros((), dtype=scorer.dtype)
        with scorer.arithmetic():
            buffer = scorer.buffer()
            for rows in scorer.row_blocks():
                partition, weighted, held = scorer.statistics(rows, buffer)
                loss, upstream = _gradient(row_loss, RowStatistics.of(partition, weighted), rows)
                total += loss
                scorer.backward(rows, buffer, partition, upstream, gradients, held)
        keep(ctx, arguments, *gradients[:3])
        return total

    @staticmethod
    @differentiable_by(plain)
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Most losses are backpropagated as they are: then V x d numbers need not be multiplied by one. Others are
        # scaled, so that half precision does not underflow: multiplied first and rounded then.
        arguments, gradients = kept(ctx)
        scale = None if at_hand(upstream) and upstream == 1 else upstream
        return (
            *(
                None if gradient is None else (gradient if scale is None else gradient * scale).to(tensor.dtype)
                for gradient, tensor in zip(gradients, arguments[:3], strict=True)
            ),
            *(None for _ in arguments[3:]),
        )


def row_statistics(scorer: LinearScorer) -> RowStatistics:
    """Return the statistics of every row, differentiable with respect to all that a scorer holds."""
    if _in_tiles(scorer):
        hidden, weight, bias, target, _ = scorer.tensors()
        log_prob, logit, log_z = _TiledStatistics.call(hidden, weight, bias, target, scorer.link, scorer.filter_eps)
        return RowStatistics(log_prob, logit, log_z, torch.zeros_like(log_prob))
    return RowStatistics(*_Statistics.call(*scorer.tensors(), *scorer.options()))


def summed_loss(scorer: LinearScorer, row_loss: RowLoss, *, held: Iterable[Tensor | None] = ()) -> Tensor:
    """Return the sum of the rows' losses; the gradient, if one is wanted, is made on the way.

    If one is wanted of a tensor that `row_loss` was made of, all take the long way: the statistics, then the loss.
    """

    def wants_gradient(*tensors: Tensor | None) -> bool:
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)

    hidden, weight, bias, class_weight = scorer.differentiable()
    held = (class_weight, *held)
    on_the_way = wants_gradient(hidden, weight, bias) and not wants_gradient(*held)
    if on_the_way and not any(map(has_direction, held)) and not _in_tiles(scorer):
        loss: Tensor = _SummedLoss.call(*scorer.tensors(), *scorer.options(), *row_loss)
        return loss
    return row_loss(row_statistics(scorer), slice(None)).sum()


def check_linear(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, block_size: int | None = None
) -> int | None:
    """Return the size of a block, if any; raise unless rows, class rows and their bias fit together."""
    check_class_rows("linear_weight", linear_weight)
    check_hidden("input", input, linear_weight.shape[1])
    check_per_class("linear_bias", linear_bias, linear_weight.shape[0])
    if linear_bias is not None:
        check_not_batched("linear_bias", linear_bias)
        if not checking.are_off():
            seen = "linear_bias: expected a class that is not masked, got -inf for every class"
            require(~linear_bias.isneginf().all(), seen)
    return None if block_size is None else check_positive_int("block_size", block_size)


class _Linear(Fused):
    """A linear layer that autocast leaves alone on the way back, too."""

    @staticmethod
    def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with without_autocast(hidden.device):
            return functional.linear(hidden, weight, bias)

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        with without_autocast(hidden.device):
            return functional.linear(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        rows = upstream.reshape(-1, upstream.shape[-1])
        with without_autocast(hidden.device):
            return (
                upstream @ weight if wanted[0] else None,
                rows.t() @ hidden.reshape(-1, hidden.shape[-1]) if wanted[1] else None,
                rows.sum(0) if wanted[2] else None,
            )


def linear_logits(input: Tensor, linear_weight: Tensor, *, linear_bias: Tensor | None = None) -> Tensor:
    r"""Return the logit of every class, $s_{rc} = h_r \cdot w_c + b_c$: the N x V tensor that all else here avoids.

    Computed in at least float32, autocast or not, as the other functions of this package are.

    Args:
        input: (..., d) hidden rows.
        linear_weight: (V, d) class rows.
        linear_bias: (V,) or None.

    Returns:
        (..., V) logits.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, or NaN or infinite input.

    Example:
        >>> linear_logits(torch.ones(1, 2), torch.eye(2), linear_bias=torch.tensor([0.0, 1.0]))
        tensor([[1., 2.]])
    """
    check_linear(input, linear_weight, linear_bias)
    check_finite("input", input)
    dtype = torch.promote_types(torch.promote_types(input.dtype, linear_weight.dtype), torch.float32)
    bias = None if linear_bias is None else linear_bias.to(dtype)
    logits: Tensor = _Linear.call(input.to(dtype), linear_weight.to(dtype), bias)
    return logits


def linear_log_partition(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | None = None,
    *,
    linear_bias: Tensor | None = None,
    link: Link | None = None,
    block_size: int | None = None,
) -> LogPartition:
    r"""Return the log-partition of each row and the logit of its target, without an N x V tensor.

    $$\log Z_r = \log \sum_{c=1}^{V} \exp(s_{rc}), \qquad s_{rc} = h_r \cdot w_c + b_c$$

    Both are differentiable; the gradient scores the logits again, block by block. Half-precision inputs are
    multiplied and summed in float32, and the result is float32.

    Args:
        input: (..., d) hidden rows.
        linear_weight: (V, d) class rows.
        target: (...) int64 class ids; without it the second number is None.
        linear_bias: (V,) or None.
        link: an increasing function from scores to logits, of `vastmax.scoring.links`.
        block_size: classes scored at a time; chosen from the shapes if omitted.

    Returns:
        `LogPartition(log_partition, target_logit)`, each (...), in nats. Their difference is the negative
        log-likelihood, to a rounding of the numbers themselves: beside large logits take `linear_cross_entropy`
        with `reduction="none"`, which does not subtract them.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, a target out of range, NaN or infinite input.

    Example:
        >>> hidden, weight = torch.randn(4, 8), torch.randn(1000, 8)
        >>> log_z, logit = linear_log_partition(hidden, weight, torch.tensor([1, 2, 3, 999]))
        >>> torch.allclose(log_z, (hidden @ weight.T).logsumexp(-1), atol=1e-5)
        True
    """
    block_size = check_linear(input, linear_weight, linear_bias, block_size)
    check_link(link)
    check_finite("input", input)
    rows = input.shape[:-1]
    if target is None:
        flat_target = torch.zeros(rows, dtype=torch.int64, device=input.device).reshape(-1)
    else:
        check_target(target, rows, linear_weight.shape[0])
        flat_target = target.reshape(-1)
    hidden = input.reshape(-1, linear_weight.shape[1])
    scorer = LinearScorer(hidden, linear_weight, linear_bias, flat_target, link=link, block_size=block_size)
    statistics = row_statistics(scorer)
    target_logit = None if target is None else statistics.target_logit.view(rows)
    return LogPartition(statistics.log_partition.view(rows), target_logit)
