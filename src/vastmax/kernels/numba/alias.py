"""Draws of classes in O(1): the alias table in one sweep, and the class at a position in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vastmax.kernels.numba.compiling import inlined, kernel
from vastmax.kernels.numba.gather import array
from vastmax.kernels.numba.threads import in_parts
from vastmax.kernels.reference.alias import fixed_point_bits

PART_DRAWS = 1 << 13
"""Draws whose work is worth a thread of its own."""


def alias_table(weight: Tensor) -> Tensor:
    """See `reference.alias_table`."""
    table = weight.new_empty(len(weight), 2)
    _sweep(array(weight), int(weight.argmax()), fixed_point_bits(len(weight)), array(table))
    return table


def alias_draw(position: Tensor, table: Tensor) -> Tensor:
    """See `reference.alias_draw`."""
    ids = torch.empty(position.shape, dtype=torch.int64)
    arrays = (array(position).reshape(-1), array(table), array(ids).reshape(-1))
    in_parts(_alias_draw, position.numel(), *arrays, at_least=PART_DRAWS)
    return ids


@inlined
def _fixed_point(weight: float, bits: int) -> tuple[int, int]:
    """The whole 2^-bits of a weight, and of the rest the whole 2^-bits of those."""
    shifted = weight * (1 << bits)
    whole = int(shifted)
    return whole, int((shifted - whole) * (1 << bits))


@kernel
def _sweep(weight: Any, heaviest: int, bits: int, table: Any) -> None:
    one = 1 << bits
    # Each heavy class is followed by the next: until it ends, that is all there is in its slot.
    table[heaviest, 0], table[heaviest, 1] = 1, heaviest
    heavy = heaviest
    for c in range(len(weight) - 1, -1, -1):
        if weight[c] > 1 and c != heaviest:
            table[c, 0], table[c, 1] = 1, heavy
            heavy = c

    whole, rest = _fixed_point(weight[heavy], bits)
    excess, excess_rest = whole - one, rest
    free, free_rest = 0, 0
    for light in range(len(weight)):
        if weight[light] > 1 or light == heaviest:
            continue
        table[light, 0], table[light, 1] = weight[light], heavy
        whole, rest = _fixed_point(weight[light], bits)
        free += one - whole
        free_rest += rest
        left = free - (free_rest >> bits) - excess - (excess_rest >> bits)
        while left >= 0 and heavy != heaviest:
            table[heavy, 0] = 1 - left / one
            heavy = int(table[heavy, 1])
            whole, rest = _fixed_point(weight[heavy], bits)
            excess += whole - one
            excess_rest += rest
            left = free - (free_rest >> bits) - excess - (excess_rest >> bits)


@kernel
def _alias_draw(position: Any, table: Any, ids: Any, start: int, stop: int) -> None:
    for i in range(start, stop):
        slot = int(position[i])
        # Both are read before the choice, so that no branch has to be guessed.
        threshold, other = table[slot, 0], int(table[slot, 1])
        ids[i] = slot if position[i] - slot < threshold else other
