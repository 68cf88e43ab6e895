"""What heads share that train on the target and a few sampled classes: scoring x sampler x loss."""

from __future__ import annotations

import copy
import functools
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vastmax import checking
from vastmax.checking import require
from vastmax.differentiation import constant, outside_transforms
from vastmax.heads.flat import FlatHead
from vastmax.heads.targets import Rows
from vastmax.recomputation import remembered
from vastmax.samplers import Batch, Candidates, Sampler, Uniform
from vastmax.samplers.exclusion import without
from vastmax.scoring import chosen_logits
from vastmax.scoring.catching_up import catch_up
from vastmax.validation import check_ids, check_positive_int, shown


class Scores(NamedTuple):
    """What the loss of a sampled head is a function of.

    Attributes:
        hidden: (N, d).
        target: (N,) int64.
        target_logit: (N,).
        sampled_logit: (N, K).
        target_log_count: (N,) log expected count of each target among its row's candidates.
        candidates: ids (K,) or (N, K), with the log of their expected counts.
    """

    hidden: Tensor
    target: Tensor
    target_logit: Tensor
    sampled_logit: Tensor
    target_log_count: Tensor
    candidates: Candidates

    @property
    def accidental_hit(self) -> Tensor:
        """(N, K) bool: True where a candidate is the row's target."""
        return self.candidates.ids == self.target.unsqueeze(-1)


class SampledHead(FlatHead):
    """A flat head whose loss is a function of the logits of the target and of sampled candidates.

    A step costs O(1 + num_samples) a row, whatever V is, if `sparse=True` and the optimizer is one of
    `vastmax.optim`, which touch only the rows that have a gradient.

    A class that the sampler never draws, such as one of count 0, is compared with no target and can't be one: what
    is learned is the distribution over the others. Its probability is 0: `log_prob` is -inf, it comes last in
    `topk`, and `nll` is inf where it is the target.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        sampler: the noise distribution; uniform if omitted, which is right for any numbering of the classes but
            wasteful where their frequencies differ: give `samplers.Unigram(counts)` if counts are known.
        num_samples: k, candidates drawn for a step or, with `shared=False`, for each row.
        shared: draw one set of candidates for all rows of a batch; scoring it is one matrix product.
        sparse: give weight and bias sparse gradients, as `nn.Embedding(sparse=True)` does. Clip these by
            `vastmax.optim.clip_grad_norm_`: that of torch fails on them.
        **options: those of `FlatHead`: bias, temperature, softcap, class_weight, ignore_index, reduction, device,
            dtype.
    """

    takes_probabilities = False
    trains_on_every_row = False

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        sampler: Sampler | None = None,
        num_samples: int = 1024,
        shared: bool = True,
        sparse: bool = False,
        **options: Any,
    ) -> None:
        in_features = check_positive_int("in_features", in_features)
        num_classes = check_positive_int("num_classes", num_classes)
        num_samples = check_positive_int("num_samples", num_samples)
        super().__init__(in_features, num_classes, **options)
        self.num_samples = num_samples
        self.shared = shared
        self.sparse = sparse
        self.sampler = self._on_device("sampler", Uniform(num_classes) if sampler is None else sampler, num_classes)
        self.reset_parameters()

    def _per_class(self, num_classes: int, *, sampler: Sampler | None = None, **others: Any) -> dict[str, Any]:
        sampler = self._for_number("sampler", self.sampler, sampler, num_classes)
        return {"sampler": sampler, **super()._per_class(num_classes, **others)}

    def _for_number(self, name: str, present: Sampler, given: Sampler | None, num_classes: int) -> Sampler:
        """Return a sampler of another number of classes: what is given, or a uniform one as the present one is."""
        if given is None and type(present) is Uniform:
            given = Uniform(num_classes, unique=present.unique)
        return self._on_device(name, present if given is None else given, num_classes)

    def _on_device(self, name: str, sampler: Sampler, num_classes: int) -> Sampler:
        """Return a sampler of this head's classes, on its device; the caller's stays where it is."""
        if not isinstance(sampler, Sampler):
            raise TypeError(f"{name}: expected a vastmax.samplers.Sampler, got {type(sampler).__name__}")
        if sampler.num_classes != num_classes:
            raise ValueError(f"{name}: expected one of num_classes={num_classes} classes, got {shown(sampler)}")
        if sampler.largest_set is not None and self.num_samples > sampler.largest_set:
            raise ValueError(
                f"num_samples: expected at most {sampler.largest_set}, which is all that {shown(sampler)} can put "
                f"in a set, got {self.num_samples}"
            )
        if sampler.device == self.weight.device or self.weight.is_meta:
            return sampler
        return copy.deepcopy(sampler).to(self.weight.device)

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` can take the training loss into its graph: neither sparse gradients nor q(h)."""
        samplers = [module for module in self.children() if isinstance(module, Sampler)]
        return self.names_link and not self.sparse and not any(sampler.conditional for sampler in samplers)

    @abstractmethod
    def loss(self, scores: Scores) -> Tensor:
        """Return the training loss of each row (N,)."""

    def loss_in_one_pass(
        self, hidden: Tensor, target: Tensor, target_log_count: Tensor, candidates: Candidates
    ) -> Tensor | None:
        """Return the same loss (N,) by a kernel that reads each class row once; None if there is no such kernel.

        It is asked for heads whose temperature is a number, without a softcap.
        """
        return None

    def forward(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        target_weight: Tensor | None = None,
        exclude: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw candidates and return the training loss, a scalar or (...), in nats.

        Args:
            hidden: (..., d).
            target: (...) or (..., T) int64 class ids, or `ignore_index`.
            sample_weight: (...) weight per row; the mean divides by their sum.
            target_weight: (..., T) share of the row of each of several true classes; equal ones if omitted.
            exclude: (..., E) int64 class ids that are known to be no negatives of a row, such as the items that a
                user liked beside the target; `ignore_index` fills places left over. Candidates of these classes are
                left out of the row's loss, which is then that among the other classes. The target may be named and
                stays.
            generator: source of the draws, on the head's device; torch's global one if omitted. Under
                `torch.utils.checkpoint` the recomputation draws as the forward did, see `recomputation`.

        Raises:
            TypeError: a tensor of the wrong dtype; probabilities as target, which need the logits of all classes.
            ValueError: shapes that do not fit, a target out of range, NaN or infinite hidden, a target that the
                sampler gives probability 0, for which the loss is not defined, or several true classes per row
                where the candidates are the batch's own targets.
        """
        self.check(hidden, target, sample_weight, target_weight)
        if target.ndim == hidden.ndim:
            self._check_several(self.sampler, target)
        if exclude is not None:
            exclude = self._excluded(hidden, target, exclude)
        row_loss = functools.partial(self._sampled_loss, exclude=exclude, generator=generator)
        return self._train(row_loss, hidden, target, sample_weight, target_weight)

    @remembered
    def _sampled_loss(
        self, rows: Rows, exclude: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        hidden, target, counted = rows
        size = [self.num_samples] if self.shared else [target.shape[0], self.num_samples]
        tables = (self.weight, self.bias)
        if any(sampler.reads_class_rows() for sampler in self._samplers()):
            catch_up(tables)
        batch = Batch(
            constant("hidden", self.divide(hidden)),
            constant("target", target),
            constant("weight", self.weight),
            None if self.bias is None else constant("bias", self.divide(self.bias)),
            counted.blank,
        )
        with outside_transforms():
            noise = self.sampler.given(batch, shared=self.shared)
            target_log_count = noise.log_expected_count(batch.target, size)
            if counted.blank is not None:  # and whose class is one that may never be drawn
                target_log_count = target_log_count.masked_fill(counted.blank, 0.0)
            self._check_drawable(batch.target, target_log_count)
            candidates = self._drawn_from(noise, batch).sample(size, generator=generator)
            if exclude is not None:
                candidates = without(candidates, constant("exclude", counted.of(exclude)), batch.target)
        catch_up(tables, lambda: torch.cat([batch.target, candidates.ids.reshape(-1)]))
        if self.log_temperature is None and self.link is None:
            loss = self.loss_in_one_pass(hidden, target, target_log_count, candidates)
            if loss is not None:
                return loss
        target_logit, sampled_logit = chosen_logits(
            hidden,
            self.weight,
            target.unsqueeze(-1),
            candidates.ids,
            linear_bias=self.bias,
            sparse=self.sparse,
        )
        # Divided and capped before they are corrected: the other order would scale the correction.
        target_logit, sampled_logit = (self.bend(self.divide(scores)) for scores in (target_logit, sampled_logit))
        target_logit = target_logit.squeeze(-1)
        return self.loss(Scores(hidden, target, target_logit, sampled_logit, target_log_count, candidates))

    def _excluded(self, hidden: Tensor, target: Tensor, exclude: Tensor) -> Tensor:
        """Return the excluded ids of each true class (..., T, E)."""
        rows = hidden.shape[:-1]
        if isinstance(exclude, Tensor) and (exclude.ndim != len(rows) + 1 or exclude.shape[:-1] != rows):
            raise ValueError(
                f"exclude: expected shape {(*rows, 'E')}, class ids for each row, got {tuple(exclude.shape)}"
            )
        ids = isinstance(exclude, Tensor) and exclude.dtype == torch.int64
        check_ids(
            "exclude", exclude.masked_fill(exclude == self.ignore_index, 0) if ids else exclude, self.num_classes
        )
        num_true = target.shape[-1] if target.ndim == hidden.ndim else 1
        return exclude.unsqueeze(-2).expand(*rows, num_true, -1)

    def _samplers(self) -> list[Sampler]:
        """The noise distribution, and what else candidates are drawn from."""
        return [self.sampler]

    def _drawn_from(self, noise: Sampler, batch: Batch) -> Sampler:
        """Return what draws the candidates of a batch whose noise distribution is `noise`."""
        return noise

    def _check_several(self, sampler: Sampler, target: Tensor) -> None:
        """Raise ValueError if several true classes per row would be among their own candidates."""
        if not sampler.takes_several:
            raise ValueError(
                f"target: expected one true class per row beside {type(sampler).__name__}, whose candidates "
                f"are the batch's targets, got shape {tuple(target.shape)}"
            )

    def _check_drawable(self, target: Tensor, target_log_count: Tensor) -> None:
        """Raise ValueError if the sampler never draws one of the targets: its log expected count is -inf."""
        if checking.are_off() or target.numel() == 0:
            return
        never = target_log_count.isneginf()
        expected = "target: expected classes that the sampler can draw"

        def error() -> ValueError:
            return ValueError(
                f"{expected}, got {target[never][0].item()}, whose probability is 0 under {shown(self.sampler)}; "
                "give it a positive count"
            )

        require(~never.any(), expected, error)

    def log_prob_offset(self) -> Tensor | None:
        """Leave out the classes that the sampler never draws: no loss compares a target with them, (V,) or None."""
        never = self.sampler.never_drawn()
        if never is None:
            return None
        return torch.zeros_like(never, dtype=torch.float32).masked_fill_(never, -torch.inf)

    def log_expected_count(self, ids: Tensor) -> Tensor:
        """Return the log of how often each class is expected among a row's candidates."""
        return self.sampler.log_expected_count(ids, self.num_samples)

    def every_class(self) -> Tensor:
        """The ids of all classes."""
        return torch.arange(self.num_classes, device=self.weight.device)

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        return f"{super().extra_repr()}, num_samples={self.num_samples}, shared={self.shared}, sparse={self.sparse}"
