"""What a noise distribution is: iid draws, distinct sets, and how often a class is expected in either."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from vastmax.checking import at_hand
from vastmax.compilation import operator
from vastmax.recomputation import replayed
from vastmax.tables import WithTables
from vastmax.validation import LARGEST_INT, check_ids, check_int, check_positive_int, shown


class Candidates(NamedTuple):
    """Sampled class ids with the log of their expected count.

    Sets of distinct classes differ in size. One set per row is therefore padded to the longest of them: a
    padding slot holds class 0 with `log_expected_count = +inf`, so that its corrected logit is -inf and it
    counts for nothing. A loss that takes no counts leaves those slots out by `padding`.

    Attributes:
        ids: (K,) int64, one set shared by all rows, or (..., K), one set per row.
        log_expected_count: as `ids`, float64: log of the expected number of times the class occurs in its set;
            (..., K) beside shared ids (K,) where that differs from row to row.
        unique: whether a set holds distinct classes, from which a loss removes accidental hits; an iid
            multiset keeps them. Either way the optimum of sampled softmax is then the data's distribution.
    """

    ids: Tensor
    log_expected_count: Tensor
    unique: bool

    @property
    def padding(self) -> Tensor:
        """Bool, as `ids`: True in the slots that hold no candidate."""
        return self.log_expected_count == math.inf


class Batch(NamedTuple):
    """What a distribution of candidates may depend on: the rows of a step and the model that scores them.

    Attributes:
        hidden: (N, d).
        target: (N,) int64.
        linear_weight: (V, d) class rows.
        linear_bias: (V,) or None.
        blank: (N,) bool, True for a row that does not count and whose target is no draw; None where all count.
    """

    hidden: Tensor
    target: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    blank: Tensor | None = None


class Sampler(WithTables, ABC):
    r"""A noise distribution $q$ over `num_classes` classes, and the candidate sets drawn from it.

    Asked for $k$ draws, a set is one of two things, each with an expected count known in closed form:

    - `unique=False`: a multiset of $k$ iid draws; class $c$ is expected $k q_c$ times.
    - `unique=True`: the distinct classes among $\mathrm{Poisson}(k)$ iid draws. The classes' counts are then
      independent $\mathrm{Poisson}(k q_c)$, so each class is in the set independently of the others, with
      probability $\pi_c = 1 - e^{-k q_c}$. The set's size varies, about $\sum_c \pi_c \le k$. With $k$ the
      number of classes of positive $q$, the set is all of them, once, with $\pi_c = 1$.

    A subclass states $q$ twice: as draws (`_draw`) and as log-probabilities (`_log_prob`). Its tables, which it
    registers by `_register_table`, are float64 unless they are made from a model's parameters: they move with the
    module, keep their dtype under `half()` and the like, and stay out of the state dict unless they cannot be made
    again, and out of what `DistributedDataParallel` sends to every process. Draws are made on the
    tables' device, which a `generator` must share. The draws of a forward that `torch.utils.checkpoint` runs again
    are those of its first run, a caller's own `generator` being put back.
    """

    conditional = False
    """Whether q depends on the batch: then only what `given` returns can draw and knows q."""

    independent = True
    """Whether candidates are independent draws from q, or the distinct classes among such."""

    per_row = False
    """Whether each row of a batch has its own q: then the first axis of ids and of sizes is the rows'."""

    takes_several = True
    """Whether a row may have several true classes; not where other targets than the row's own are candidates."""

    _anchor: Tensor

    def __init__(self, num_classes: int, *, unique: bool = False, device: torch.device | str | None = None) -> None:
        super().__init__()
        if not isinstance(unique, bool):
            raise TypeError(f"unique: expected True or False, got {shown(unique)} of type {type(unique).__name__}")
        self.num_classes = check_positive_int("num_classes", num_classes)
        self.unique = unique
        self._register_table("_anchor", torch.empty(0, dtype=torch.float64, device=device))

    @abstractmethod
    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """Return iid class ids of `shape`, int64, on `self.device`."""

    @abstractmethod
    def _log_prob(self, ids: Tensor) -> Tensor:
        """Return log q of valid `ids`, float64."""

    def given(self, batch: Batch, *, shared: bool) -> "Sampler":
        """Return the sampler of one batch: itself, unless q depends on the batch or on the model.

        A head asks this of its sampler at every step, and draws candidates and takes expected counts from what
        comes back. What that is need only be good for the batch: for `sample` of k if `shared`, else of (N, k),
        and for `log_expected_count` of ids whose first axis is the rows'.

        Args:
            batch: the rows and the model; gradients go round it.
            shared: whether one set of candidates will serve all rows.
        """
        return self

    def reads_class_rows(self) -> bool:
        """Return whether the candidates of the next batch depend on class rows, which may be any.

        Then all have to be up to date, see `optim.catch_up_before_reading`.
        """
        return False

    @property
    def support_size(self) -> int:
        """The number of classes with positive q."""
        return self.num_classes

    def never_drawn(self) -> Tensor | None:
        """Return for which classes q is 0 in every batch, (V,) bool; None if there is no such class."""
        if self.support_size == self.num_classes:
            return None
        return self._log_prob(torch.arange(self.num_classes, device=self.device)).isneginf()

    @property
    def largest_set(self) -> int | None:
        """The most candidates that can be asked for in a set; None if there is no bound."""
        return self.support_size if self.unique else None

    @property
    def device(self) -> torch.device:
        """Where the tables are and the draws are made."""
        return self._anchor.device

    def sample(self, size: int | Sequence[int], *, generator: torch.Generator | None = None) -> Candidates:
        """Draw candidate sets.

        Args:
            size: k, for one set shared by all rows, or (..., k) for one set per row.
            generator: source of the draws, on `self.device`; torch's global one if omitted.

        Returns:
            `Candidates` of shape `size`. With `unique=True` the last axis is instead as long as the longest
            set, 0 if every set came out empty.

        Raises:
            TypeError, ValueError: a `size` that is no such shape, or whose k exceeds the number of classes of
                positive q although the classes of a set are distinct.

        Example:
            >>> from vastmax.samplers import Uniform
            >>> Uniform(1_000_000).sample((32, 100)).ids.shape
            torch.Size([32, 100])
            >>> Uniform(3, unique=True).sample(3)[:2]
            (tensor([0, 1, 2]), tensor([0., 0., 0.], dtype=torch.float64))
        """
        return self._sample(self._check_size(size), replayed(generator))

    def log_prob(self, ids: Tensor) -> Tensor:
        """Return log q of each of `ids`, float64 of the same shape, -inf where q is 0.

        Raises:
            TypeError, ValueError: `ids` that are not int64 or not in [0, num_classes).
        """
        check_ids("ids", ids, self.num_classes)
        return self._log_prob(ids)

    def log_expected_count(self, ids: Tensor, size: int | Sequence[int]) -> Tensor:
        """Return the log of the expected count of `ids` in a set of `sample(size)`, float64, as `ids`.

        This is what a loss corrects the target's logit by; candidates bring their own.

        Args:
            ids: (...) int64 class ids.
            size: k, or a shape that ends in k.

        Raises:
            TypeError, ValueError: as `sample` of `size` and `log_prob` of `ids`.
        """
        check_ids("ids", ids, self.num_classes)
        return self._log_expected_count(ids, self._check_size(size)[-1])

    def _draw_scored(self, shape: Sequence[int], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return iid class ids and their log q, for samplers that learn the one on the way to the other."""
        ids = self._draw(shape, generator)
        return ids, self._log_prob(ids)

    def _sample(self, size: list[int], generator: torch.Generator | None) -> Candidates:
        *rows, k = size
        if self.unique:
            return self._sample_distinct(rows, k, generator)
        ids, log_prob = self._draw_scored(size, generator)
        return Candidates(ids, math.log(k) + log_prob, unique=False)

    def _log_expected_count(self, ids: Tensor, k: int) -> Tensor:
        log_prob = self._log_prob(ids)
        if not self.unique:
            return math.log(k) + log_prob
        if k == self.support_size:
            return torch.zeros_like(log_prob).masked_fill(log_prob == -math.inf, -math.inf)
        return log_inclusion(math.log(k) + log_prob)

    def _sample_distinct(self, rows: list[int], k: int, generator: torch.Generator | None) -> Candidates:
        if k == self.support_size:
            every_class = torch.arange(self.num_classes, device=self.device)
            ids = every_class[self._log_prob(every_class) > -math.inf].expand(*rows, k)
            return Candidates(ids, torch.zeros_like(ids, dtype=torch.float64), unique=True)

        rate = torch.full((math.prod(rows),), k, dtype=torch.float64, device=self.device)
        num_draws = torch.poisson(rate, generator=generator).long()
        if at_hand(num_draws):
            ids, filled = self._distinct_among(num_draws, generator)
        else:
            ids, filled = self._distinct_among_most(num_draws, most_draws(k), generator)
        if not rows and at_hand(num_draws):
            return Candidates(ids[0], self._log_expected_count(ids[0], k), unique=True)
        ids, log_expected_count = ids.masked_fill(~filled, 0), self._log_expected_count(ids, k)
        log_expected_count = log_expected_count.masked_fill_(~filled, math.inf)
        sets = (*rows, ids.shape[-1])
        return Candidates(ids.view(sets), log_expected_count.view(sets), unique=True)

    def _distinct_among(self, num_draws: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the distinct classes (R, K) among so many draws (R,) for each set, and which of them there are."""
        owner = torch.repeat_interleave(num_draws)
        drawn = owner * self.num_classes + self._draw(owner.shape, generator)
        drawn = torch.unique(drawn)  # ascending: set by set, class by class
        owner, ids = drawn // self.num_classes, drawn % self.num_classes
        set_size = torch.bincount(owner, minlength=len(num_draws))
        longest = int(set_size.max()) if len(set_size) > 0 else 0
        filled = torch.arange(longest, device=self.device) < set_size[:, None]
        padded = torch.zeros(filled.shape, dtype=torch.int64, device=self.device)
        return padded.masked_scatter(filled, ids), filled

    def _distinct_among_most(
        self, num_draws: Tensor, most: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return the same with K = most, where the numbers of draws cannot be looked at."""
        drawn = torch.arange(most, device=self.device) < num_draws.unsqueeze(-1)
        ids = self._draw(drawn.shape, generator).masked_fill(~drawn, self.num_classes).sort(-1).values
        filled = ids < self.num_classes
        filled[:, 1:] &= ids[:, 1:] != ids[:, :-1]
        return ids.clamp(max=self.num_classes - 1), filled

    def _check_size(self, size: int | Sequence[int]) -> list[int]:
        try:
            shape = [check_int("size", length) for length in (size if isinstance(size, Sequence) else [size])]
        except TypeError as wrong:
            raise TypeError(f"size: expected k or a shape (..., k) of integers, got {shown(size)}") from wrong
        if len(shape) == 0 or shape[-1] < 1 or min(shape) < 0 or max(shape) > LARGEST_INT:
            raise ValueError(f"size: expected k or a shape (..., k) with k at least 1, got {shown(size)}")
        if self.unique and shape[-1] > self.support_size:
            raise ValueError(
                f"size: expected k of at most {self.support_size}, the number of classes with positive "
                f"probability, for sets of distinct classes, got {shown(size)}"
            )
        return shape

    def _uniform(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """Return float64 uniforms of [0, 1), multiples of 2^-53, fine enough for any number of classes."""
        if generator is None:
            return _uniform(self._anchor, list(shape))[0]
        return torch.rand(tuple(shape), dtype=self._anchor.dtype, device=self.device, generator=generator)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Buffers that a subclass has beside its tables keep their dtype, too.
        return super()._apply(lambda table: table.to(fn(table).device), recurse)


def _uniform_shapes(like: Tensor, shape: list[int]) -> list[Tensor]:
    return [like.new_empty(shape)]


@operator("Tensor like, SymInt[] shape", _uniform_shapes, draws=True)
def _uniform(like: Tensor, shape: list[int]) -> list[Tensor]:
    """Draw from the global generator, in a graph as outside: compilers have generators of their own."""
    return [torch.rand(shape, dtype=like.dtype, device=like.device)]


def most_draws(k: int) -> int:
    r"""Return a number that a $\mathrm{Poisson}(k)$ count exceeds with a probability below $10^{-18}$.

    $P(X \ge k + t) \le e^{-t^2 / 2(k + t / 3)}$, which is Bernstein's bound.
    """
    exponent = 18 * math.log(10)
    return k + math.ceil(exponent / 3 + math.sqrt((exponent / 3) ** 2 + 2 * exponent * k))


def log_inclusion(log_rate: Tensor) -> Tensor:
    r"""Return $\log(1 - e^{-r})$, the log-probability that a $\mathrm{Poisson}(r)$ count is not 0.

    Accurate for all $r = e^{\text{log rate}}$ from 0 (-inf) through rates that underflow to infinity
    (Maechler, "Accurately computing log(1 - exp(-|a|))", 2012).

    Args:
        log_rate: (...) float64.

    Example:
        >>> log_inclusion(torch.tensor([-1000.0, 0.0, 5.0], dtype=torch.float64)).exp()
        tensor([0.0000, 0.6321, 1.0000], dtype=torch.float64)
    """
    rate = log_rate.exp()
    small = torch.log(-torch.expm1(-rate))
    tiny = log_rate  # 1 - e^-r is r to rounding, also where r itself underflows
    large = torch.log1p(-torch.exp(-rate))
    return torch.where(rate > math.log(2), large, torch.where(log_rate < -37, tiny, small))
