"""Several noise distributions in given shares."""

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from vastmax.checking import at_hand
from vastmax.samplers.base import Batch, Sampler
from vastmax.samplers.unigram import Unigram
from vastmax.validation import check_counts, shown


class Mixture(Sampler):
    r"""A mixture of noise distributions.

    $$q_c = \sum_m w_m q_c^{(m)}, \qquad \sum_m w_m = 1.$$

    A candidate's probability is the mixture's, whichever part drew it. If a part depends on the batch, so does the
    mixture: a share of draws from the classes' frequencies is what keeps the weights of a sampler that follows
    the model within bounds.

    Args:
        samplers: the parts, all over the same classes, each with `unique=False`: whether a set holds distinct
            classes is the mixture's to say. Each must make independent draws from a q.
        weights: (M,) positive weight of each part; normalised to sum to one.
        unique: whether a set holds distinct classes (see `Sampler`); not if a part depends on the batch.

    Raises:
        TypeError, ValueError: `samplers` or `weights` that are not as above.

    Example:
        >>> from vastmax.samplers import Uniform
        >>> sampler = Mixture([Unigram([3, 1, 0, 0], power=1.0), Uniform(4)], weights=[0.5, 0.5])
        >>> sampler.log_prob(torch.arange(4)).exp()
        tensor([0.5000, 0.2500, 0.1250, 0.1250], dtype=torch.float64)
    """

    _weight: Tensor

    def __init__(self, samplers: Sequence[Sampler], weights: Tensor | ArrayLike, *, unique: bool = False) -> None:
        parts = _check_parts(samplers)
        weight = check_counts("weights", weights)
        if len(weight) != len(parts):
            raise ValueError(f"weights: expected {len(parts)}, one per sampler, got {len(weight)}")
        if (weight == 0).any():
            raise ValueError(f"weights: expected weights greater than 0, got {shown(weight.tolist())}")

        super().__init__(parts[0].num_classes, unique=unique, device=parts[0].device)
        self.conditional = any(part.conditional for part in parts)
        self.per_row = any(part.per_row for part in parts)
        if unique and (self.conditional or self.per_row):
            raise ValueError("unique: expected False in a mixture with a part that depends on the batch, got True")
        self._register_table("_weight", weight.to(self.device))
        self.shares = Unigram(weight, power=1.0).to(self.device)
        self.samplers = nn.ModuleList(parts)
        self._support_size = self._count_support()

    @property
    def support_size(self) -> int:
        """The number of classes with positive q."""
        return self._support_size

    def reads_class_rows(self) -> bool:
        """Return whether a part does."""
        return any(part.reads_class_rows() for part in self._parts())

    def given(self, batch: Batch, *, shared: bool) -> Sampler:
        """Return the mixture of the parts given the batch."""
        if not self.conditional:
            return self
        mixture = copy.copy(self)
        parts = [part.given(batch, shared=shared) for part in self._parts()]
        mixture._modules = {**self._modules, "samplers": nn.ModuleList(parts)}
        mixture.conditional, mixture.per_row = False, any(part.per_row for part in parts)
        return mixture

    def _count_support(self) -> int:
        if any(sampler.support_size == self.num_classes for sampler in self._parts()):
            return self.num_classes
        every_class = torch.arange(self.num_classes, device=self.device)
        return int((self._log_prob(every_class) > -math.inf).sum())

    def _parts(self) -> list[Sampler]:
        return [cast(Sampler, sampler) for sampler in self.samplers]

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        part = self.shares._draw(shape, generator)
        ids = torch.empty_like(part)
        for index, sampler in enumerate(self._parts()):
            chosen = part == index
            if sampler.per_row or not at_hand(part):
                ids = torch.where(chosen, sampler._draw(shape, generator), ids)
            else:  # no more draws than are wanted
                ids[chosen] = sampler._draw([int(chosen.sum())], generator)
        return ids

    def _log_prob(self, ids: Tensor) -> Tensor:
        log_joint = [self.shares._log_q[index] + part._log_prob(ids) for index, part in enumerate(self._parts())]
        return torch.stack(log_joint).logsumexp(0)

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        weights = [round(weight, 4) for weight in self.shares._log_q.exp().tolist()]
        return f"num_classes={self.num_classes}, weights={weights}, unique={self.unique}"


def _check_parts(samplers: Sequence[Sampler]) -> list[Sampler]:
    if not isinstance(samplers, Sequence) or not all(isinstance(part, Sampler) for part in samplers):
        raise TypeError(f"samplers: expected a sequence of samplers, got {shown(samplers)}")
    if len(samplers) == 0:
        raise ValueError("samplers: expected at least one, got none")
    if len({part.num_classes for part in samplers}) > 1:
        sizes = [part.num_classes for part in samplers]
        raise ValueError(f"samplers: expected the same num_classes in all, got {shown(sizes)}")
    if len({part.device for part in samplers}) > 1:
        raise ValueError(f"samplers: expected one device, got {shown([str(part.device) for part in samplers])}")
    for place, part in enumerate(samplers):
        if not part.independent:
            raise ValueError(
                "samplers: expected independent draws from a q, which alone can be mixed, "
                f"got {shown(part)} at {place}"
            )
        if part.unique:
            raise ValueError(
                f"samplers: expected unique=False, which is the mixture's to say, got {shown(part)} at {place}"
            )
    return list(samplers)
