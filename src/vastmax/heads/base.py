"""What every head offers."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vastmax.compilation import uncompiled
from vastmax.differentiation import check_not_batched
from vastmax.heads.targets import RowLoss, Rows, TrueClasses, check_several, check_target_weight, shares
from vastmax.reduction import REDUCTIONS, CountedRows, check_sample_weight, reduce_rows
from vastmax.scoring.catching_up import catch_up
from vastmax.scoring.top import TopK
from vastmax.tables import WithTables
from vastmax.validation import (
    check_choice,
    check_class_weight,
    check_distribution,
    check_finite,
    check_hidden,
    check_int,
    check_positive_int,
    check_target,
)

Table = tuple[str, Tensor | None, *tuple[int, ...]]
"""A parameter's name, the parameter, and its shape."""


class Head(WithTables, ABC):
    r"""An output layer: a loss to train with, and exact probabilities whatever that loss is.

    A target is one true class per row, (...); or several, (..., T), where `ignore_index` fills the places left
    over, each with the share $a_{rt}$ of the row that `target_weight` gives it, or an equal one,

    $$\ell_r = \sum_t a_{rt} v_{y_{rt}} \ell(h_r, y_{rt});$$

    or, in heads that train with the exact cross-entropy, the classes' probabilities, floating (..., V),

    $$\ell_r = -\sum_c t_{rc} v_c \log p_{rc}.$$

    With class weights v, a row counts for the mean class weight of its target, in a mean over rows too.

    A bias of -inf masks its class, which then has probability 0 for every row: `log_prob` is -inf, `nll` and the
    training loss of such a target inf, and `topk` has it last. Other rows and classes are as if it were not there.

    A subclass states `_row_nll`, and `_row_loss` if it trains with another loss than that.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        class_weight: (V,) weight of each class in the training loss; 1 if None.
        ignore_index: rows with this target take no part in a loss.
        reduction: `"mean"`, `"sum"` or `"none"`.
    """

    class_weight: Tensor | None
    takes_probabilities = True
    """Whether a target may be the probabilities of all classes."""
    trains_on_every_row = True
    """Whether the training loss reads all rows of the tables; if not, it calls `catch_up` for those it reads."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        class_weight: Tensor | None,
        ignore_index: int,
        reduction: str,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.in_features = check_positive_int("in_features", in_features)
        self.num_classes = check_positive_int("num_classes", num_classes)
        self.ignore_index = check_int("ignore_index", ignore_index)
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)
        self._register_setting(
            "class_weight", check_class_weight("class_weight", class_weight, self.num_classes), device
        )

    def forward(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        target_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the training loss of hidden (..., d) and target: a scalar or (...), in nats.

        Args:
            hidden: (..., d).
            target: (...) or (..., T) int64 class ids or `ignore_index`, or (..., V) probabilities.
            sample_weight: (...) weight per row; the mean divides by their sum.
            target_weight: (..., T) share of the row of each of several true classes, such as the probabilities of
                a teacher's best T; equal ones of sum 1 if omitted. A row without a share takes no part.

        Raises:
            TypeError: a tensor of the wrong dtype, or probabilities in a head that cannot train on them.
            ValueError: shapes that do not fit, a target out of range, several ids of a row that are not distinct or
                look like a 0/1 matrix, NaN or infinite hidden.
        """
        self.check(hidden, target, sample_weight, target_weight)
        return self._train(
            lambda rows: self._row_loss(rows.hidden, rows.target), hidden, target, sample_weight, target_weight
        )

    def nll(self, hidden: Tensor, target: Tensor, *, target_weight: Tensor | None = None) -> Tensor:
        """Return -log p(target) exactly, per row (...), in nats; 0 in rows whose target is `ignore_index`."""
        self.check(hidden, target, target_weight=target_weight)
        self._catch_up()
        true = self._true_classes(
            lambda rows: self._row_nll(rows.hidden, rows.target), hidden, target, target_weight
        )
        return reduce_rows(true.loss_of_rows(), reduction="none")

    @abstractmethod
    def _row_nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return -log p(target), (N,), of hidden (N, d) and one class each, target (N,); differentiable."""

    def _row_loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return the training loss (N,) of hidden (N, d) and one true class each, target (N,)."""
        return self._row_nll(hidden, target)

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` can take the training loss into its graph; if not, the head is left as it is."""
        return True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the training loss: see `forward`."""
        # A compiler leaves alone what is called in a graph, and would compile what that calls, piece by piece.
        may_be_compiled = torch.compiler.is_compiling() or "torch._dynamo" in sys.modules
        if may_be_compiled and not self.compiles:
            return _uncompiled(self, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    @abstractmethod
    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the exact log-probability of every class: (..., V), in nats."""

    @abstractmethod
    def topk(self, hidden: Tensor, k: int) -> TopK:
        """Return the k most probable classes of each row, without an N x V tensor.

        Returns:
            `(values, indices)`, each (..., k): exact log-probabilities, falling, and class ids.
        """

    @abstractmethod
    def log_partition(self, hidden: Tensor) -> Tensor:
        """Return log Z of each row (...): what the head's log-probabilities fall short of normalisation by."""

    @abstractmethod
    def start_at(self, log_prob: Tensor) -> None:
        """Set the biases so that, where hidden is 0, the classes have these log-probabilities (V,)."""

    def resize(self, *_: Any, **__: Any) -> None:
        """Change the number of classes, where each has a row of its own: see `FlatHead.resize`.

        Raises:
            TypeError: a head whose parameters are made otherwise.
        """
        raise TypeError(
            f"resize: expected a flat head, with a row of weight for each class, got {type(self).__name__}: build "
            "another of the new number of classes"
        )

    def _train(
        self,
        row_loss: RowLoss,
        hidden: Tensor,
        target: Tensor,
        sample_weight: Tensor | None,
        target_weight: Tensor | None,
    ) -> Tensor:
        """Return the training loss that is made of a loss of rows with one true class each."""
        true = self._true_classes(row_loss, hidden, target, target_weight)
        return true.reduce(self.reduction, sample_weight, self.class_weight)

    def _true_classes(
        self, row_loss: RowLoss, hidden: Tensor, target: Tensor, target_weight: Tensor | None
    ) -> TrueClasses:
        """Apply a loss of rows with one true class each to all that any target names."""
        if target.is_floating_point():
            loss = -self.log_prob(hidden).masked_fill(target == 0, 0.0)
            return TrueClasses(loss, target.to(loss.dtype))
        classes, counted, share = shares(hidden, target, self.ignore_index, target_weight)
        possible = self._possible(classes)
        if possible is not None:
            check_not_batched("bias", possible)
        scored = counted if possible is None else counted & possible
        rows = CountedRows(scored)
        each = hidden.unsqueeze(-2).expand(*classes.shape, -1)
        loss = rows.in_their_places(row_loss(Rows(rows.of(each), rows.of(classes), rows)))
        if possible is not None:
            loss = loss.masked_fill(counted & ~possible, torch.inf)
        return TrueClasses(loss, share.to(loss.dtype), classes)

    def _possible(self, classes: Tensor) -> Tensor | None:
        """Return which targets are not masked by a bias of -inf: bool, of the shape of `classes`.

        The others' loss and nll are inf, without a gradient, and nothing is asked of the losses. None where those
        find out by themselves.
        """
        return None

    def check(
        self,
        hidden: Tensor,
        target: Tensor | None = None,
        sample_weight: Tensor | None = None,
        target_weight: Tensor | None = None,
    ) -> None:
        """Raise TypeError or ValueError, naming the argument, unless the arguments fit this head.

        All that reads the head calls it first. So rows that owe their optimizer steps make them here, where that
        was asked for (`optim.catch_up_before_reading`), and where all rows are about to be read.
        """
        for name, table, *sizes in self._tables():
            if table is not None and table.shape != tuple(sizes):
                raise ValueError(
                    f"{name}: expected shape {tuple(sizes)}, in a head of {self.num_classes} classes and "
                    f"in_features={self.in_features}, got {tuple(table.shape)}: a tied one has to be of that size"
                )
        check_hidden("hidden", hidden, self.in_features)
        rows, counted = hidden.shape[:-1], None
        if target is not None:
            several = isinstance(target, Tensor) and target.ndim == hidden.ndim
            shape = (*rows, target.shape[-1]) if several else rows
            if several and target.is_floating_point():
                self._check_probabilities(target, rows)
            else:
                check_target(target, shape, self.num_classes, self.ignore_index)
                counted = target != self.ignore_index
                counted = counted.any(-1) if several else counted
                if several and target_weight is None:
                    check_several(target, self.num_classes, self.ignore_index)
            if target_weight is not None:
                check_target_weight(target_weight, target, several)
        if sample_weight is not None:
            check_sample_weight(sample_weight, rows)
        check_finite("hidden", hidden, counted)
        if target is None or self.trains_on_every_row:
            self._catch_up()

    def _catch_up(self) -> None:
        catch_up(table for _, table, *_ in self._tables())

    def _tables(self) -> Iterator[Table]:
        """The parameters that a tied one may stand in for, each with its name and the shape that it has to have."""
        yield from ()

    def _check_probabilities(self, target: Tensor, rows: torch.Size) -> None:
        if not self.takes_probabilities:
            raise TypeError(
                f"target: expected int64 class ids, got {target.dtype} probabilities, which {type(self).__name__} "
                "cannot train on: its loss compares the true classes with some of the others, not all"
            )
        check_distribution("target", target, (*rows, self.num_classes))

    def _register_setting(self, name: str, setting: Tensor | None, device: torch.device | str | None) -> None:
        """Keep a tensor that is no parameter: it moves with the head, keeps its dtype, and is not saved."""
        if setting is not None:  # on the meta device it would lose what it says
            place = torch.empty(0, device=device).device
            place = setting.device if place.type == "meta" else place
            setting = setting.detach().to(place, copy=True)
        self._register_table(name, setting)

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}"


_uncompiled = uncompiled(nn.Module.__call__)
