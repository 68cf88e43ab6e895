"""Groups of classes: how to make them, and tables that list their members and draw from them."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vastmax.recomputation import replayed
from vastmax.samplers import Candidates
from vastmax.tables import WithTables
from vastmax.validation import check_counts, check_ids, check_per_class, check_positive_int


def frequency_clusters(counts: Tensor | ArrayLike, num_clusters: int | None = None) -> Tensor:
    r"""Return groups of about equal mass: classes of like frequency, many rare ones to a group.

    Sorted by falling count, a class is in the group in whose share of the total the middle of its own share lies;
    a class that has more than a group's share is a group of its own. The expected cost of a row,
    $G + \sum_g p_g k_g \approx G + V / G$, is least at the default.

    Args:
        counts: (V,) how often each class occurs, 0 or greater.
        num_clusters: G, of which fewer are left where frequent classes fill several; about sqrt(V) if omitted.

    Returns:
        (V,) int64 group of each class, the frequent ones' first; no group is empty.

    Raises:
        TypeError, ValueError: counts that are not as above, a number of groups that is not in [1, V].

    References:
        Mikolov, Kombrink, Burget, Cernocky and Khudanpur, Extensions of recurrent neural network language model,
        2011.

    Example:
        >>> frequency_clusters([1, 6, 2, 3], num_clusters=2)
        tensor([1, 0, 1, 1])
    """
    frequency = check_counts("counts", counts)
    num_classes = len(frequency)
    if num_clusters is None:
        num_clusters = max(1, round(math.sqrt(num_classes)))
    num_clusters = check_positive_int("num_clusters", num_clusters)
    if num_clusters > num_classes:
        raise ValueError(f"num_clusters: expected at most the {num_classes} classes, got {num_clusters}")
    falling, order = frequency.sort(descending=True, stable=True)
    middle = (falling.cumsum(0) - falling / 2) / falling.sum()
    share = (num_clusters * middle).long().clamp(max=num_clusters - 1)
    group = torch.empty_like(order)
    group[order] = share.unique(return_inverse=True)[1]
    return group


def sqrt_clusters(num_classes: int) -> Tensor:
    """Return groups of about sqrt(V) classes each, by id: (V,) int64.

    Args:
        num_classes: V.

    Raises:
        TypeError, ValueError: a `num_classes` that is not an integer of at least 1.

    Example:
        >>> sqrt_clusters(6)
        tensor([0, 0, 0, 1, 1, 1])
    """
    num_classes = check_positive_int("num_classes", num_classes)
    size = math.ceil(math.sqrt(num_classes))
    return torch.arange(num_classes) // size


class Clusters(WithTables):
    """The groups of a class-factored softmax and the noise within each, q(c | group), as tables.

    The tables are no part of the state dict; like a sampler's they move with the module, whatever the parameters
    are made of.

    Attributes:
        group: (V,) group of each class.
        order: (V,) classes, group by group, in each by rising id.
        start: (G,) where each group starts in `order`.
        size: (G,) classes in each group.
        place: (V,) where each class is in `order`.

    Args:
        group: (V,) int64 group of each class, 0 to G - 1, none of them empty.
        counts: (V,) counts greater than 0 that q(c | group) is proportional to; uniform if None.

    Raises:
        TypeError, ValueError: groups or counts that are not as above.
    """

    group: Tensor
    order: Tensor
    start: Tensor
    size: Tensor
    place: Tensor
    _log_q: Tensor
    _mass: Tensor

    def __init__(self, group: Tensor | ArrayLike, counts: Tensor | ArrayLike | None = None) -> None:
        super().__init__()
        group = _check_groups(group)
        count = torch.ones(len(group), dtype=torch.float64) if counts is None else check_counts("counts", counts)
        check_per_class("counts", count, len(group))
        count = count.to(group.device)
        if not count.all():
            place = int((count == 0).nonzero()[0])
            raise ValueError(f"counts: expected counts greater than 0, got 0 at {place}, never drawn")
        self.num_classes = len(group)
        size = group.bincount()
        self.num_groups, self.largest = len(size), int(size.max())
        order = group.argsort(stable=True)
        start = size.cumsum(0) - size
        total = torch.zeros(self.num_groups, dtype=torch.float64, device=group.device).index_add(0, group, count)
        tables = {
            "group": group,
            "order": order,
            "start": start,
            "size": size,
            "place": torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device)),
            "_log_q": (count / total[group]).log(),
            "_mass": (count / total[group])[order].cumsum(0),  # every group has mass 1
        }
        for name, table in tables.items():
            self._register_table(name, table)
        first, last = order[start], order[start + size - 1]
        self._ranges = list(zip(start.tolist(), (start + size).tolist(), strict=True))
        self._runs = list(zip(first.tolist(), (last + 1).tolist(), strict=True))

    def members(self, group: int) -> Tensor | slice:
        """The classes of a group by rising id; as a slice, which reads class rows without a copy, if it can be."""
        (start, stop), (first, end) = self._ranges[group], self._runs[group]
        return slice(first, end) if end - first == stop - start else self.order[start:stop]

    def member_ids(self, group: int) -> Tensor:
        """The ids of the classes of a group, rising."""
        return self.order[slice(*self._ranges[group])]

    def group_of(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The classes of each class's group, (N, S) of the size of the largest, and which places hold none."""
        group = self.group[classes].unsqueeze(-1)
        place = torch.arange(self.largest, device=classes.device)
        padding = place >= self.size[group]
        return self.order[self.start[group] + place.where(~padding, 0)], padding

    def label(self, classes: Tensor) -> Tensor:
        """The place of each class among the members of its group."""
        return self.place[classes] - self.start[self.group[classes]]

    def sample(self, target: Tensor, k: int, generator: torch.Generator | None) -> Candidates:
        """Draw k independent candidates for each target (N,) from q(c | group of the target): (N, k)."""
        group = self.group[target].unsqueeze(-1)
        generator = replayed(generator)
        uniform = torch.rand(len(target), k, dtype=torch.float64, device=group.device, generator=generator)
        drawn = torch.searchsorted(self._mass, group + uniform, right=True)
        # Sums of rounded masses end next to, not at, the integers: what falls outside is the nearest member.
        drawn = drawn.clamp(self.start[group], self.start[group] + self.size[group] - 1)
        ids = self.order[drawn]
        return Candidates(ids, self.log_expected_count(ids, k), unique=False)

    def log_expected_count(self, classes: Tensor, k: int) -> Tensor:
        """The log of how often a class is expected among k candidates of its group: log(k q(c | group))."""
        return math.log(k) + self._log_q[classes]

    def extra_repr(self) -> str:
        """The numbers of classes and groups."""
        return f"num_classes={self.num_classes}, num_groups={self.num_groups}"


def _check_groups(group: Tensor | ArrayLike) -> Tensor:
    if not isinstance(group, Tensor):
        array = np.asarray(group)
        if array.dtype.kind not in "iu":
            raise TypeError(f"clusters: expected integers, got {type(group).__name__} of {array.dtype}")
        group = torch.from_numpy(array.astype(np.int64))
    if group.ndim != 1 or len(group) == 0:
        raise ValueError(f"clusters: expected shape (V,) with V at least 1, got {tuple(group.shape)}")
    check_ids("clusters", group, len(group))
    empty = (group.bincount() == 0).nonzero()
    if len(empty) > 0:
        raise ValueError(
            f"clusters: expected a class in every group from 0 to {int(group.max())}, got none in {int(empty[0])}"
        )
    return group.detach().clone()
