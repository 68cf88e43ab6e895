"""Classes as frequent as they were counted, raised to a power."""

import math
from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vastmax import kernels
from vastmax.compilation import operator
from vastmax.samplers.base import Sampler
from vastmax.validation import check_counts, check_finite_number


class Unigram(Sampler):
    r"""The distribution of observed class counts $n$, flattened by a power (Mikolov et al., 2013).

    $$q_c = \frac{n_c^{\alpha}}{\sum_j n_j^{\alpha}}.$$

    A class never counted is never drawn, whatever the power: $q_c = 0$ where $n_c = 0$, at $\alpha = 0$ too,
    which is uniform over the classes counted, and below, where the rarest is the likeliest. A draw is one access to
    an alias table (Walker, 1977), O(1), of which one uniform number says the slot and the place in it. The tables
    are made in O(V) and hold 24 bytes a class.

    Args:
        counts: (V,) counts, 0 or greater, integers or floats, not all 0: a tensor, whose device the tables are
            then on, or anything numpy makes an array of.
        power: $\alpha$, finite; negative powers are those of `ns_exponent` in gensim.
        unique: whether a set holds distinct classes (see `Sampler`).

    Raises:
        TypeError, ValueError: `counts` or `power` that are not as above.

    Example:
        >>> Unigram([8, 1, 0, 1], power=1.0).log_prob(torch.arange(4)).exp()
        tensor([0.8000, 0.1000, 0.0000, 0.1000], dtype=torch.float64)
    """

    _log_q: Tensor
    _alias_table: Tensor

    def __init__(self, counts: Tensor | ArrayLike, power: float = 0.75, *, unique: bool = False) -> None:
        count = check_counts("counts", counts)
        super().__init__(len(count), unique=unique, device=count.device)
        self.power = check_finite_number("power", power)

        log_q = log_frequency(
            count.cpu(), self.power
        )  # there, so that a seed draws alike from counts on any device
        self._support_size = int((log_q > -math.inf).sum())
        weight = log_q.exp()
        weight *= len(weight) / weight.sum()
        self._register_table("_log_q", log_q.to(self.device))
        table = kernels.implementation("alias_table", weight)(weight)
        self._register_table("_alias_table", table.to(self.device))

    @property
    def support_size(self) -> int:
        """The number of classes with positive q."""
        return self._support_size

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        position = self._uniform(shape, generator).mul_(self.num_classes)  # below V, as with `Uniform`
        return _alias_draw(position, self._alias_table)[0]

    def _log_prob(self, ids: Tensor) -> Tensor:
        # Not `self._log_q[ids]`, which takes twice as long.
        return self._log_q.index_select(0, ids.reshape(-1)).view(ids.shape)

    def extra_repr(self) -> str:
        """Return the constructor's arguments, the counts as their number."""
        return f"num_classes={self.num_classes}, power={self.power:g}, unique={self.unique}"


def _alias_draw_shapes(position: Tensor, table: Tensor) -> list[Tensor]:
    return [torch.empty_like(position, dtype=torch.int64)]


@operator("Tensor position, Tensor table", _alias_draw_shapes)
def _alias_draw(position: Tensor, table: Tensor) -> list[Tensor]:
    return [kernels.implementation("alias_draw", position, table)(position, table)]


def log_frequency(count: Tensor, power: float) -> Tensor:
    r"""Return $\log q_c = \alpha \log n_c - \log \sum_j n_j^\alpha$, (V,) float64, in the memory of the counts."""
    never = count == 0
    log_q = count.log_()
    # So that the likeliest class has 0, whatever size the others grow to.
    log_q -= log_q.max() if power >= 0 else log_q.masked_fill(never, math.inf).min()
    log_q *= power
    log_q.masked_fill_(never, -math.inf)
    log_q -= log_q.logsumexp(0)
    return log_q
