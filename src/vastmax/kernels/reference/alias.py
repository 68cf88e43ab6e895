"""Draws of classes in O(1): the alias table, and the class at a position in it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def alias_table(weight: Tensor) -> Tensor:
    r"""Cut the weights of V classes into V slots of size 1, each of which holds at most two classes.

    Slot c holds class c up to the threshold $t_c$ and class $a_c$ above it, so that

    $$w_c = t_c + \sum_{j:\, a_j = c} (1 - t_j).$$

    A light class, $w_c \le 1$, lies in its own slot and no other: $t_c = w_c$ to the last bit, 0 included. The
    heavy classes, one after the other, fill what the light ones leave free, one slot after the other. A heavy class
    ends when no more than a slot is left of it, which its own slot takes; what is free there is for the next. The
    heaviest comes last and takes what rounding leaves.

    So the running totals of what is free and of what is in excess, merged, say where each heavy class ends. They
    are whole numbers of $2^{-b}$, $2^b < 2^{62} / V$: a heavy class is right to $4 \cdot 2^{-b}$, and the heaviest
    to the rounding of the sum of all, a few $2^{-53} V$.

    Args:
        weight: (V,) float64, 0 or greater, with mean 1 to rounding.

    Returns:
        (V, 2) float64, the threshold and the other class of each slot: one row, to be read at one go.

    References:
        Walker, An Efficient Method for Generating Discrete Random Variables with General Distributions, 1977.
        Hübschle-Schneider and Sanders, Parallel Weighted Random Sampling, 2019 (the sweep by running totals).

    Example:
        >>> alias_table(torch.tensor([0.5, 2.25, 0.25], dtype=torch.float64))
        tensor([[0.5000, 1.0000],
                [1.0000, 1.0000],
                [0.2500, 1.0000]], dtype=torch.float64)
    """
    bits = fixed_point_bits(len(weight))
    heaviest = weight.argmax()
    is_light = weight <= 1
    is_light[heaviest] = False
    light = is_light.nonzero().squeeze(1)
    is_light[heaviest] = True
    heavy = is_light.logical_not_().nonzero().squeeze(1)

    slots = torch.arange(1, len(weight) + 1, device=weight.device) << bits
    free = slots[: len(light)] - _running_total(weight[light], bits)
    excess = _running_total(weight[heavy], bits) - slots[: len(heavy)]
    # The light class with which each heavy one ends, and how much of that one's free part is left for the next.
    last = torch.searchsorted(free, excess)
    ends = last < len(light)
    left = torch.zeros_like(weight[heavy])
    left[ends] = (free[last[ends]] - excess[ends]).to(weight.dtype) * 2.0**-bits
    ended_before = torch.bincount(last + 1, minlength=len(light))[: len(light)].cumsum_(0)

    table = weight.new_empty(len(weight), 2)
    threshold, other = table.unbind(1)
    threshold[light] = weight[light]
    threshold[heavy] = 1 - left
    threshold[heaviest] = 1
    following = torch.cat([heavy, heaviest.view(1)]).to(weight.dtype)
    other[light] = following[ended_before]
    other[heavy] = following[1:]
    other[heaviest] = following[-1]
    return table


def alias_draw(position: Tensor, table: Tensor) -> Tensor:
    r"""Return the class at each position $s + f$ of an alias table: $s$ if $f < t_s$, else $a_s$.

    Args:
        position: (...) float64 in [0, V), which a uniform number times V is.
        table: (V, 2) of `alias_table`.

    Returns:
        (...) int64 class ids.
    """
    slot = position.long()
    threshold, other = functional.embedding(slot, table).unbind(-1)
    return torch.where(position - slot < threshold, slot, other.long())


def fixed_point_bits(num_classes: int) -> int:
    """The bits behind the point of a number of slots, of which there are `num_classes`, in an int64."""
    return 62 - num_classes.bit_length()


def _running_total(weight: Tensor, bits: int) -> Tensor:
    """Return the running totals in whole numbers of 2^-bits, the sums exact and rounded down once."""
    weight = weight * 2.0**bits
    whole = weight.floor()
    rest = weight.sub_(whole).mul_(2.0**bits).long()
    return whole.long().cumsum_(0).add_(rest.cumsum_(0) >> bits)
