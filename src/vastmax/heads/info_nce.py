"""InfoNCE: each row's own key among the keys of the batch, as a module."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vastmax.contrastive.key_queue import KeyQueue
from vastmax.differentiation import along
from vastmax.functional.contrastive import info_nce
from vastmax.functional.precision import at_least_float32
from vastmax.fused import Fused, Shapes, keep, kept
from vastmax.recomputation import remembered
from vastmax.reduction import REDUCTIONS
from vastmax.sharding import is_sharded
from vastmax.validation import check_choice, check_finite_number


class InfoNCE(nn.Module):
    r"""The contrastive loss of paired rows, of their cosines by default; see `functional.info_nce`.

    $$\ell_i = -\log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}, \qquad s_{ij} = \cos(q_i, k_j) / T$$

    A learned temperature is stored as its logarithm, `log_temperature`, and is bounded from below by 1 / max_scale.
    A parameter below the bound gets the gradient of the loss there if descent leads back up, and 0 if it leads
    further down. Leave it out of weight decay.

    Args:
        temperature: T, greater than 0; where it starts, if it is learned.
        learn_temperature: make it a parameter.
        max_scale: bound on 1 / T of a learned temperature.
        normalize: scale every row to length 1 first; if not, rows are scored by dot product as they are.
        hard_negative_weight: how much more the negatives with high scores count, at least 0.
        symmetric: take the mean with the loss of each key among the queries, as CLIP does.
        both_views: score the rows of both sides among one another, each row itself left out: NT-Xent, and with
            labels SupCon.
        decoupled: leave the positives out of the sum that they are compared with: decoupled contrastive loss.
        in_batch: whether the other rows' keys are negatives.
        queue: past keys that are negatives of every row. In training mode the batch's keys, as they are scored, are
            pushed after each loss; once, in a forward that `torch.utils.checkpoint` runs again.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Raises:
        TypeError: an option of the wrong type.
        ValueError: an option out of range, `queue` or `both_views` with `symmetric=True`, `both_views` with
            `in_batch=False`.

    Example:
        >>> loss = InfoNCE(0.1)(torch.randn(4, 8), torch.randn(4, 8))
        >>> loss.shape
        torch.Size([])
    """

    log_temperature: nn.Parameter | None

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learn_temperature: bool = False,
        max_scale: float = 100.0,
        normalize: bool = True,
        hard_negative_weight: float = 0.0,
        symmetric: bool = False,
        both_views: bool = False,
        decoupled: bool = False,
        in_batch: bool = True,
        queue: KeyQueue | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.start_temperature = check_finite_number("temperature", temperature, above=0.0)
        self.max_scale = check_finite_number("max_scale", max_scale, above=0.0)
        self.hard_negative_weight = check_finite_number("hard_negative_weight", hard_negative_weight, at_least=0.0)
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)
        if queue is not None and not isinstance(queue, KeyQueue):
            raise TypeError(f"queue: expected a vastmax.contrastive.KeyQueue, got {type(queue).__name__}")
        if queue is not None and symmetric:
            raise ValueError("queue: expected None with symmetric=True, which scores keys among queries, got one")
        if both_views and (symmetric or not in_batch):
            raise ValueError(
                "both_views: expected False with symmetric=True, whose mean it takes already, or in_batch=False, "
                "which takes no other row, got True"
            )
        if learn_temperature and self.start_temperature < 1 / self.max_scale:
            raise ValueError(
                f"temperature: expected at least 1 / max_scale = {1 / self.max_scale:g}, got {temperature}"
            )
        self.normalize = normalize
        self.symmetric = symmetric
        self.both_views = both_views
        self.decoupled = decoupled
        self.in_batch = in_batch
        self.queue = queue
        start = nn.Parameter(torch.tensor(math.log(self.start_temperature))) if learn_temperature else None
        self.register_parameter("log_temperature", start)

    @property
    def temperature(self) -> float | Tensor:
        """T: a number, or a tensor () with a gradient if it is learned."""
        if self.log_temperature is None:
            return self.start_temperature
        bound = -math.log(self.max_scale)
        if torch.compiler.is_compiling():
            in_graph: Tensor = _AtLeastInGraph.call(self.log_temperature, bound)
            return in_graph.exp()
        bounded: Tensor = _AtLeast.apply(self.log_temperature, bound)  # type: ignore[no-untyped-call]
        return bounded.exp().view(())  # of a vector, where it is sharded

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of query (N, d) and key (N, d), paired row by row: a scalar or (N,), in nats.

        Args:
            query: (N, d).
            key: (N, d).
            negatives: (K, d) for all rows, or (N, K, d), each row's own; not with a queue.
            labels: (N,) int64; rows of one label are positives of one another.
            mask: (N, N) bool, True where a key is known to be no negative of a query; or (N, N + K), with the
                further negatives, which are the keys of a queue, oldest first, if there is one.
            sample_weight: (N,) weight per row; the mean divides by their sum.

        Raises:
            TypeError: a tensor of the wrong dtype.
            ValueError: shapes that do not fit, NaN or infinite input, what the options rule out.
        """
        if self.queue is not None and negatives is not None:
            raise ValueError("negatives: expected None with a queue, which has them, got a tensor")
        query, key = self._scored(query), self._scored(key)
        options = {"labels": labels, "mask": mask, "sample_weight": sample_weight}
        if self.queue is not None:
            return self._loss_beside_queue(self.queue, query, key, options)
        return self._loss(query, key, None if negatives is None else self._scored(negatives), options)

    @remembered
    def _loss_beside_queue(
        self, queue: KeyQueue, query: Tensor, key: Tensor, options: dict[str, Tensor | None]
    ) -> Tensor:
        loss = self._loss(query, key, queue.keys(), options)
        if self.training:
            queue.push(key)
        return loss

    def _loss(
        self, query: Tensor, key: Tensor, negatives: Tensor | None, options: dict[str, Tensor | None]
    ) -> Tensor:
        return info_nce(
            query,
            key,
            negatives,
            temperature=self.temperature,
            hard_negative_weight=self.hard_negative_weight,
            symmetric=self.symmetric,
            both_views=self.both_views,
            decoupled=self.decoupled,
            in_batch=self.in_batch,
            reduction=self.reduction,
            **options,
        )

    def mutual_information(self, query: Tensor, key: Tensor) -> Tensor:
        r"""Return a lower bound in expectation on the mutual information of query and key, a scalar in nats.

        $$I(q; k) \ge \log N - \mathbb E\, \ell$$

        It is at most log N, so a small batch cannot show much information. Other rows' keys must be independent
        draws: no labels, further negatives or weights have a part in it.

        Args:
            query: (N, d).
            key: (N, d), paired with `query` row by row.
        """
        query, key = self._scored(query), self._scored(key)
        loss = info_nce(query, key, temperature=self.temperature, symmetric=self.symmetric)
        return math.log(len(query)) - loss

    def _scored(self, rows: Tensor) -> Tensor:
        """Rows as they are scored: of length 1, in at least float32, if they are to be."""
        if not self.normalize or not isinstance(rows, Tensor) or not rows.is_floating_point() or rows.ndim == 0:
            return rows
        return functional.normalize(at_least_float32(rows), dim=-1)

    def extra_repr(self) -> str:
        """Describe how rows are scored."""
        if self.log_temperature is None:
            temperature = f"{self.start_temperature:g}"
        elif self.log_temperature.is_meta or is_sharded(self.log_temperature):
            temperature = "learned"
        else:
            temperature = f"{self.temperature:g}, learned"
        return f"temperature={temperature}, normalize={self.normalize}"


class _AtLeast(torch.autograd.Function):
    """A number or the bound it is below, where it gets the gradient that leads back up, and no other.

    A plain clamp has no gradient there, and could not be left; the plain gradient at the bound would lead away
    from it for as long as the loss asks for less.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, bound: float) -> Tensor:
        return value.clamp(min=bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        value, bound = inputs
        ctx.save_for_backward(value < bound)
        ctx.save_for_forward(value < bound)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (below,) = ctx.saved_tensors
        return upstream.masked_fill(below & (upstream > 0), 0.0), None

    @staticmethod
    @along
    def jvp(ctx: Any, saved: tuple[Tensor], direction: Tensor, _: None) -> Tensor:
        return direction.masked_fill(saved[0], 0.0)


class _AtLeastInGraph(Fused):
    """The same as an operator: compilers refuse a function with a rule for forward mode."""

    arguments = "Tensor value, float bound"

    @staticmethod
    def shapes(_: list[int], value: Tensor, bound: float) -> Shapes:
        return [torch.empty_like(value)], []

    @staticmethod
    def forward(ctx: Any, value: Tensor, bound: float) -> Tensor:
        keep(ctx, (value, bound))
        return value.clamp(min=bound)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (value, bound), _ = kept(ctx)
        return upstream.masked_fill((value < bound) & (upstream > 0), 0.0), None
