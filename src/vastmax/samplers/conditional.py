"""Noise distributions that follow the batch or the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from vastmax.arithmetic import without_autocast
from vastmax.samplers.base import Batch, Candidates, Sampler
from vastmax.validation import check_class_rows, check_hidden, check_per_class, check_positive_int, check_target
from vastmax.versions import Tables, Versions


class ConditionalSampler(Sampler):
    """A noise distribution $q(c | h)$: `given` a batch it returns the sampler that draws for it.

    A head calls `given` at every step; nothing else of a conditional sampler can be used by itself. One that learns
    from its batches reads what it has learned by `versions.Versions`, so that the recomputation of a forward, by
    `torch.utils.checkpoint`, learns nothing and draws by what the forward drew by.
    """

    conditional = True

    @abstractmethod
    def given(self, batch: Batch, *, shared: bool) -> Sampler:
        """Return the sampler of one batch."""

    def _check_batch(self, batch: Batch) -> None:
        hidden, target, linear_weight, linear_bias, _ = batch
        check_class_rows("linear_weight", linear_weight)
        if len(linear_weight) != self.num_classes:
            raise ValueError(
                f"linear_weight: expected one row for each of {self.num_classes} classes, got {len(linear_weight)}"
            )
        check_per_class("linear_bias", linear_bias, self.num_classes)
        check_hidden("hidden", hidden, linear_weight.shape[1])
        if hidden.ndim != 2:
            raise ValueError(f"hidden: expected shape (N, {linear_weight.shape[1]}), got {tuple(hidden.shape)}")
        check_target(target, hidden.shape[:1], self.num_classes)

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        self._refuse()

    def _log_prob(self, ids: Tensor) -> Tensor:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: expected a batch, which its candidates depend on: "
            "call given(batch, shared=...) and sample from what it returns"
        )


class ModelFollowingSampler(ConditionalSampler):
    """A conditional sampler that draws by tables made from the model's class rows.

    The tables are made at the first batch and, in training, again every `refresh` batches. Between the two they
    lag behind the model. That makes q a worse guess at the model's distribution and nothing else: what is drawn
    follows the q that is declared, to rounding, whatever the tables' age.

    A subclass names its tables, makes new ones in `_build`, and tells `_versions` what `_update` overwrites.

    Args:
        num_classes: V.
        refresh: batches from one making of the tables to the next.
        device: where to draw.
    """

    table_names: ClassVar[tuple[str, ...]]

    def __init__(self, num_classes: int, *, refresh: int, device: torch.device | str | None = None) -> None:
        super().__init__(num_classes, device=device)
        self.refresh = check_positive_int("refresh", refresh)
        self._age: int | None = None
        self._versions = Versions()
        for name in self.table_names:
            self._register_table(name, None)

    def given(self, batch: Batch, *, shared: bool) -> Sampler:
        """Return the sampler of one batch, from tables brought up to date as far as they are due."""
        self._check_batch(batch)
        bring_up_to_date = partial(self._bring_up_to_date, batch, shared=shared)
        tables = self._versions.read(self._tables, after=bring_up_to_date)
        with unrecorded(batch.hidden.device):
            return self._follow(self._rows(batch, shared=shared), tables, shared=shared)

    def _bring_up_to_date(self, batch: Batch, *, shared: bool) -> None:
        with unrecorded(batch.hidden.device):
            if self.reads_class_rows():
                self._versions.before_change(lambda: {name: (None, was) for name, was in self._tables().items()})
                self._build(self._rows(batch, shared=shared), batch.linear_weight, batch.linear_bias)
                self._age = 0
            elif self.training:
                self._update(batch.linear_weight, batch.linear_bias)
            if self.training:
                self._age = (self._age or 0) + 1

    def reads_class_rows(self) -> bool:
        """Return whether the next batch makes the tables; where it updates them, by rows that have just changed."""
        return self._age is None or (self.training and self._age >= self.refresh)

    def _rows(self, batch: Batch, *, shared: bool) -> Tensor:
        """Hidden in the dtype of the arithmetic; a set for no rows is drawn for a row of zeros."""
        widest = torch.promote_types(batch.hidden.dtype, batch.linear_weight.dtype)
        hidden = batch.hidden.to(torch.promote_types(widest, torch.float32))
        return hidden.new_zeros(1, hidden.shape[1]) if shared and len(hidden) == 0 else hidden

    def _tables(self) -> Tables:
        return {name: getattr(self, name) for name in self.table_names}

    @abstractmethod
    def _build(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Make the tables from the class rows, in the dtype of `hidden`, as new tensors."""

    def _update(self, weight: Tensor, bias: Tensor | None) -> None:
        """Bring up to date what can be, between two makings of the tables."""

    @abstractmethod
    def _follow(self, hidden: Tensor, tables: Tables, *, shared: bool) -> Sampler:
        """Return the sampler of the batch, by these tables."""


class BatchCandidates(Sampler):
    """The candidates of one batch, where they are no independent draws from a q: only `sample` and counts."""

    independent = False

    @abstractmethod
    def _sample(self, size: list[int], generator: torch.Generator | None) -> Candidates:
        """Return the candidates."""

    @abstractmethod
    def _log_expected_count(self, ids: Tensor, k: int) -> Tensor:
        """Return the log of the expected count of `ids`, whose first axis is the rows'."""

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        self._refuse()

    def _log_prob(self, ids: Tensor) -> Tensor:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError("the candidates of this batch are no independent draws from a q: they have counts alone")


@contextmanager
def unrecorded(device: torch.device) -> Iterator[None]:
    """Compute in the tensors' own dtype, without gradient, and make tables that outlive inference mode."""
    with without_autocast(device), torch.inference_mode(False), torch.no_grad():
        yield
