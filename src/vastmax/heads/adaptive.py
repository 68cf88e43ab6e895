"""The adaptive softmax: a shortlist of frequent classes, and tails of rare ones in fewer dimensions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from vastmax.heads.base import Head, Table
from vastmax.heads.cutoffs import adaptive_cutoffs, check_cutoffs, tail_width
from vastmax.heads.running_topk import RunningTopK, topk_in_blocks
from vastmax.heads.softmax_part import SoftmaxPart
from vastmax.recomputation import remembered
from vastmax.reduction import CountedRows, total_weight
from vastmax.samplers import Sampler, Uniform, Unigram
from vastmax.scoring import linear_logits, linear_topk
from vastmax.scoring.top import TopK
from vastmax.validation import (
    check_counts,
    check_finite,
    check_finite_number,
    check_per_class,
    check_positive_int,
)


class AdaptiveSoftmax(Head):
    r"""The adaptive softmax: frequent classes in a shortlist, rare ones in tails of falling width.

    $$\log p(c) = \begin{cases} \log p_{\text{head}}(c) & c < \text{cutoffs}_0 \\
      \log p_{\text{head}}(\text{tail}_i) + \log p_i(c) & c \text{ in tail } i \end{cases}, \qquad
      p_i = \text{softmax}(U_i P_i h)$$

    with $P_i$ (d_i, d), $U_i$ (k_i, d_i) and $d_i = d / \text{div\_value}^{i + 1}$. Most rows pay for the shortlist
    only. The classes are to be sorted by falling frequency.

    The parameters are those of `torch.nn.AdaptiveLogSoftmaxWithLoss`, under the same names: state dicts load either
    way, and loss, probabilities and gradients are the same. No cutoffs make it the plain softmax.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        cutoffs: increasing class ids at which the tails start; `"auto"` for those that
            `vastmax.heads.cutoffs.adaptive_cutoffs` finds from `counts`.
        div_value: the factor by which each tail is narrower than the one before.
        head_bias: whether the shortlist and the tails, as wholes, have biases, by which they can be masked too.
            Classes of a tail have none.
        counts: (V,) how often each class occurs; `cutoffs="auto"` needs it, and `tail_samples` draws in proportion
            to it.
        tail_samples: train larger tails than this by a softmax over the target and as many candidates, independent
            draws in proportion to `counts`, or uniform, shared by the rows of the tail: its optimum is that of the
            exact softmax. Exact if omitted; `nll`, `log_prob` and `topk` are exact in any case.
        sparse: give the class rows of the tails with candidates sparse gradients. Clip these by
            `vastmax.optim.clip_grad_norm_`: that of torch fails on them.
        class_weight: (V,) weight of each class in the training loss; 1 if None. The mean divides by the weights.
        ignore_index: rows with this target take no part in the loss.
        reduction: `"mean"`, `"sum"` or `"none"`.
        device: where the parameters and the samplers' tables are.
        dtype: of the parameters.

    Raises:
        TypeError: cutoffs that are not integers.
        ValueError: cutoffs that do not increase within [1, num_classes), or so many that a tail has width 0;
            `"auto"` without counts; `sparse` without `tail_samples`.

    References:
        Grave, Joulin, Cisse, Grangier and Jegou, Efficient softmax approximation for GPUs, 2017.

    Example:
        >>> head = AdaptiveSoftmax(16, 1000, [100, 500])
        >>> [tuple(parameter.shape) for parameter in head.parameters()]
        [(102, 16), (4, 16), (400, 4), (1, 16), (500, 1)]
        >>> theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(16, 1000, [100, 500])
        >>> theirs.load_state_dict(head.state_dict())
        <All keys matched successfully>
        >>> hidden, target = torch.randn(4, 16), torch.tensor([1, 2, 300, 999])
        >>> torch.allclose(head(hidden, target), theirs(hidden, target).loss, atol=1e-5)
        True
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        cutoffs: Sequence[int] | str,
        div_value: float = 4.0,
        *,
        head_bias: bool = False,
        counts: Tensor | ArrayLike | None = None,
        tail_samples: int | None = None,
        sparse: bool = False,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            class_weight=class_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            device=device,
        )
        in_features, num_classes = self.in_features, self.num_classes
        self.div_value = div_value = check_finite_number("div_value", div_value, at_least=1.0)
        if counts is not None:
            counts = check_counts("counts", counts)
            check_per_class("counts", counts, num_classes)
        if cutoffs == "auto":
            if counts is None:
                raise ValueError("counts: expected the frequency of each class with cutoffs='auto', got None")
            cutoffs = adaptive_cutoffs(counts, in_features, div_value=div_value)
        self.cutoffs = check_cutoffs(cutoffs, num_classes, in_features, div_value)
        if tail_samples is not None:
            tail_samples = check_positive_int("tail_samples", tail_samples)
        elif sparse:
            raise ValueError("sparse: expected tail_samples beside it: an exact tail has a gradient in every row")
        self.tail_samples = tail_samples
        self.trains_on_every_row = tail_samples is None
        self.sparse = sparse
        self.takes_probabilities = tail_samples is None

        linear = functools.partial(nn.Linear, device=device, dtype=dtype)
        self.shortlist = self.cutoffs[0] if self.cutoffs else num_classes
        self.head = linear(in_features, self.shortlist + len(self.cutoffs), bias=head_bias)
        widths = [tail_width(in_features, div_value, i) for i in range(len(self.cutoffs))]
        self.tail = nn.ModuleList(
            nn.Sequential(linear(in_features, width, bias=False), linear(width, stop - start, bias=False))
            for width, (start, stop) in zip(widths, self._tails(), strict=True)
        )
        self.samplers = nn.ModuleDict(
            {
                str(i): self._build_sampler(start, stop, counts)
                for i, (start, stop) in enumerate(self._tails())
                if tail_samples is not None and stop - start > tail_samples
            }
        )

    def reset_parameters(self) -> None:
        """Draw the parameters as `nn.Linear` does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` can take the training loss into its graph: with dense gradients."""
        return not self.sparse

    def _tables(self) -> Iterator[Table]:
        rows = self.shortlist + len(self.cutoffs)
        yield "head.weight", self.head.weight, rows, self.in_features
        yield "head.bias", self.head.bias, rows
        for i, (start, stop) in enumerate(self._tails()):
            width = tail_width(self.in_features, self.div_value, i)
            project, classes = (cast(nn.Linear, part) for part in cast(nn.Sequential, self.tail[i]))
            yield f"tail.{i}.0.weight", project.weight, width, self.in_features
            yield f"tail.{i}.1.weight", classes.weight, stop - start, width

    def _tails(self) -> Iterator[tuple[int, int]]:
        """The first class of each tail and the one after its last."""
        yield from itertools.pairwise([*self.cutoffs, self.num_classes])

    def _build_sampler(self, start: int, stop: int, counts: Tensor | None) -> Sampler:
        place = None if self.head.weight.is_meta else self.head.weight.device
        if counts is None:
            return Uniform(stop - start).to(place)
        if not counts[start:stop].all():
            never = start + int((counts[start:stop] == 0).nonzero()[0])
            raise ValueError(
                f"counts: expected counts greater than 0 in the tails, whose candidates they draw, got 0 at {never}"
            )
        return Unigram(counts[start:stop], power=1.0).to(place)

    def forward(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        target_weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the training loss, a scalar or (...), in nats; see `Head`.

        `generator` is the source of the draws of `tail_samples`, on the head's device. Under
        `torch.utils.checkpoint` the recomputation draws as the forward did.
        """
        self.check(hidden, target, sample_weight, target_weight)
        if self.tail_samples is None and self.reduction != "none" and target.ndim < hidden.ndim:
            return self._reduced(hidden, target, sample_weight)
        row_loss = functools.partial(self._row_loss, generator=generator)
        return self._train(
            lambda rows: row_loss(rows.hidden, rows.target), hidden, target, sample_weight, target_weight
        )

    def _reduced(self, hidden: Tensor, target: Tensor, sample_weight: Tensor | None) -> Tensor:
        """The reduced exact loss of one class per row, its gradient made in the same pass over the classes."""
        rows = CountedRows(target != self.ignore_index)
        hidden, target = rows.of(self._wide(hidden)), rows.of(target)
        weight = hidden.new_ones(target.shape[0])
        if sample_weight is not None:
            weight = weight * rows.of(sample_weight).to(weight.dtype)
        if rows.blank is not None:
            weight = weight.masked_fill(rows.blank, 0.0)
        if self.class_weight is not None:
            weight = weight * self.class_weight[target].to(weight.dtype)
        if self.reduction == "mean":
            weight = weight / total_weight(weight)
        parts = self._parts(hidden, target)
        losses = [part.exact_loss(sample_weight=part.rows.of(weight), reduction="sum") for part in parts]
        return torch.stack(losses).sum()

    def _row_nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        return self._summed_parts(hidden, target, SoftmaxPart.exact_loss)

    def _row_loss(self, hidden: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        def loss(part: SoftmaxPart) -> Tensor:
            if part.sampler is None or self.tail_samples is None:
                return part.exact_loss()
            return self._sampled_loss(part, part.sampler, self.tail_samples, generator)

        return self._summed_parts(hidden, target, loss)

    @remembered
    def _sampled_loss(
        self, part: SoftmaxPart, sampler: Sampler, k: int, generator: torch.Generator | None
    ) -> Tensor:
        return part.sampled_loss(sampler, k, sparse=self.sparse, generator=generator)

    def _summed_parts(self, hidden: Tensor, target: Tensor, loss: Callable[[SoftmaxPart], Tensor]) -> Tensor:
        hidden = self._wide(hidden)
        total = hidden.new_zeros(target.shape[0])
        for part in self._parts(hidden, target):
            total = total + part.rows.in_their_places(loss(part))
        return total

    def _parts(self, hidden: Tensor, target: Tensor) -> Iterator[SoftmaxPart]:
        """The head's softmax for all rows, then those of the tails in which there are targets."""
        label = target
        for i, start in enumerate(self.cutoffs):
            label = label.where(target < start, self.shortlist + i)
        every_row = CountedRows(torch.ones_like(target, dtype=torch.bool), every=True)
        yield SoftmaxPart(every_row, hidden, self.head.weight, self.head.bias, label)
        for i, (start, stop) in enumerate(self._tails()):
            rows = CountedRows((target >= start) & (target < stop))
            if not rows.none:  # a tail that no row is known to be in gets no gradient, and so no optimizer step
                projected, weight = self._tail(i, rows.of(hidden))
                label = (rows.of(target) - start).clamp(min=0)
                yield SoftmaxPart(rows, projected, weight, None, label, self._sampler(i))

    def _tail(self, i: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden rows projected into tail i, and its class rows."""
        projection, classes = cast(nn.Sequential, self.tail[i])
        return linear_logits(hidden, cast(Tensor, projection.weight)), cast(Tensor, classes.weight)

    def _sampler(self, i: int) -> Sampler | None:
        """What draws the candidates of tail i, None if it is trained exactly."""
        return cast(Sampler, self.samplers[str(i)]) if str(i) in self.samplers else None

    def _wide(self, hidden: Tensor) -> Tensor:
        """Hidden in the dtype of the arithmetic, so that the gradients of the parts are summed in it too."""
        widest = torch.promote_types(hidden.dtype, self.head.weight.dtype)
        return hidden.to(torch.promote_types(widest, torch.float32))

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the exact log-probability of every class: (..., V), in nats, in at least float32."""
        self.check(hidden)
        rows = hidden.shape[:-1]
        hidden = self._wide(hidden).reshape(-1, self.in_features)
        head = linear_logits(hidden, self.head.weight, linear_bias=self.head.bias).log_softmax(-1)
        tails = [
            linear_logits(*self._tail(i, hidden)).log_softmax(-1) + head[:, [self.shortlist + i]]
            for i in range(len(self.cutoffs))
        ]
        return torch.cat([head[:, : self.shortlist], *tails], -1).view(*rows, self.num_classes)

    @torch.no_grad()
    def topk(self, hidden: Tensor, k: int) -> TopK:
        """Return the k most probable classes of each row, without an N x V tensor.

        A tail is scored for the rows only in which its own probability exceeds that of the k-th best class so far.
        """
        self.check(hidden)
        width = self.shortlist + len(self.cutoffs)
        return topk_in_blocks(self._topk, self._wide(hidden), k, num_classes=self.num_classes, width=width)

    def _topk(self, hidden: Tensor, k: int) -> TopK:
        head = linear_logits(hidden, self.head.weight, linear_bias=self.head.bias).log_softmax(-1)
        found = RunningTopK(len(hidden), k, like=head)
        every_row = torch.arange(len(hidden), device=hidden.device)
        found.offer(every_row, TopK(*head[:, : self.shortlist].topk(min(k, self.shortlist))))
        for i, (start, stop) in enumerate(self._tails()):
            bound = head[:, self.shortlist + i]
            rows = found.contested(bound)
            values, indices = linear_topk(*self._tail(i, hidden[rows]), min(k, stop - start))
            found.offer(rows, TopK(values + bound[rows, None], indices + start))
        return found.best()

    def log_partition(self, hidden: Tensor) -> Tensor:
        """Return zeros (...): the head normalises itself, at every softmax."""
        self.check(hidden)
        return (self._wide(hidden) * 0.0).sum(-1)

    @torch.no_grad()
    def start_at(self, log_prob: Tensor) -> None:
        """Set the head's bias so that, where hidden . weight is 0, shortlist and tails have these probabilities.

        Within a tail, whose classes have no bias, they are then equally probable.

        Args:
            log_prob: (V,) finite, in nats.

        Raises:
            ValueError: a head without bias, or a `log_prob` of another shape or not finite.
        """
        if self.head.bias is None:
            raise ValueError("start_at: expected a head with head_bias=True, got one with head_bias=False")
        check_per_class("log_prob", log_prob, self.num_classes)
        check_finite("log_prob", log_prob)
        tails = [log_prob[start:stop].logsumexp(0, keepdim=True) for start, stop in self._tails()]
        self.head.bias.copy_(torch.cat([log_prob[: self.shortlist], *tails]))

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        options = f"cutoffs={self.cutoffs}, div_value={self.div_value:g}, head_bias={self.head.bias is not None}"
        return f"{super().extra_repr()}, {options}, tail_samples={self.tail_samples}, sparse={self.sparse}"
