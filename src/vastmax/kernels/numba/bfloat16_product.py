"""Matrix products of factors rounded to bfloat16: packed as pairs of terms, and multiplied tile by tile.

What a thread has of its own, the columns of a wide product or the rows of another, it packs a piece at a time and
multiplies while that is in the nearest caches. The other factor is packed before, for all threads.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
from torch import Tensor

from vastmax.kernels.numba.bfloat16 import (
    COLUMNS,
    LANES,
    ROWS,
    multiply_tile,
    pair_across,
    pair_along,
    pair_turned,
)
from vastmax.kernels.numba.compiling import inlined, kernel
from vastmax.kernels.numba.gather import array, rows_worth
from vastmax.kernels.numba.threads import in_parts

PAIRS = 64
"""Pairs of terms that are summed at a time: those of a panel of columns, 16 kB, stay in the first cache."""

GROUP = 8 * ROWS
"""Rows that are packed side by side where they lie so."""

BLOCK = 6 * GROUP
"""Rows that are packed at a time: their pairs, 72 kB, stay in the second cache."""

TERMS = 16_384
"""Terms that are packed at a time for all threads: 8 MB for 256 columns."""

_BELOW_HALF, _ONE, _HALF = np.uint32(0x7FFF), np.uint32(1), np.uint32(16)
_NOTHING = np.float32(0)
_SIZE, _INFINITY, _NAN = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x7FC0)


def rounded_product(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """See `reference.rounded_product`."""
    if a.shape[1] == 0 and not add:
        out.zero_()
    if out.numel() == 0:
        return out
    left, right, sums = _bits(a), _bits(b), array(out)
    blocks, groups, panels = ceil(len(a) / BLOCK), ceil(len(a) / GROUP), ceil(b.shape[1] / COLUMNS)
    for start in range(0, a.shape[1], TERMS):
        terms = min(TERMS, a.shape[1] - start)
        chunks, work = ceil(terms / (2 * PAIRS)), a.shape[0] * b.shape[1] * terms // 64
        there = int(add or start > 0)
        if len(a) < b.shape[1]:
            packed = np.empty((blocks, chunks, BLOCK * PAIRS), np.uint32)
            in_parts(_pack_blocks, blocks, *left, packed, start, terms)
            shared = packed, left[1], *right, sums, start, terms, there
            in_parts(_multiply_panels, panels, *shared, at_least=rows_worth(work // panels))
        else:
            packed = np.empty((chunks, panels, PAIRS, COLUMNS), np.uint32)
            in_parts(_pack_panels, chunks, *right, packed, start, terms)
            in_parts(
                _multiply_groups,
                groups,
                *left,
                packed,
                sums,
                start,
                terms,
                there,
                at_least=rows_worth(work // groups),
            )
    return out


def _bits(factor: Tensor) -> tuple[np.ndarray[Any, Any], bool]:
    """The bits of a factor as they lie in memory, and whether the numbers of a column lie side by side there."""
    turned = factor.stride(0) == 1 and factor.stride(1) != 1
    return array(factor.t() if turned else factor).view(np.uint32), turned


@inlined
def _rounded(bits: Any) -> Any:
    """The bits of the bfloat16 number next to a float32 number, of two the even one."""
    odd = np.uint32(np.uint32(bits >> _HALF) & _ONE)
    nearest = np.uint32(np.uint32(np.uint32(bits + _BELOW_HALF) + odd) >> _HALF)
    return nearest if np.uint32(bits & _SIZE) <= _INFINITY else _NAN


@inlined
def _pair(first: Any, second: Any) -> Any:
    return np.uint32(_rounded(first) | np.uint32(_rounded(second) << _HALF))


@inlined
def _pack_along(values: Any, to: Any) -> None:
    """Pair the numbers of a row with their neighbours."""
    whole = len(values) // (2 * LANES) * LANES
    for pair in range(0, whole, LANES):
        pair_along(values[2 * pair :].ctypes.data, to[pair:].ctypes.data)
    for pair in range(whole, len(values) // 2):
        to[pair] = _pair(values[2 * pair], values[2 * pair + 1])
    if len(values) % 2 == 1:
        to[len(values) // 2] = _rounded(values[-1])


@inlined
def _pack_across(values: Any, term: int, last: int, first: int, count: int, to: Any) -> None:
    """Pair the numbers of a row with those of the next, unless it is the last."""
    one = values[term, first : first + count]
    if term + 1 < last:
        other = values[term + 1, first : first + count]
        whole = count // LANES * LANES
        for j in range(0, whole, LANES):
            pair_across(one[j:].ctypes.data, other[j:].ctypes.data, to[j:].ctypes.data)
        for j in range(whole, count):
            to[j] = _pair(one[j], other[j])
    else:
        for j in range(count):
            to[j] = _rounded(one[j])


@inlined
def _pack_block(values: Any, turned: bool, first: int, rows: int, start: int, stop: int, to: Any) -> None:
    """Pack terms of some rows of the left factor."""
    if turned:
        for group in range((rows + GROUP - 1) // GROUP):
            count = min(GROUP, rows - group * GROUP)
            for pair in range((stop - start + 1) // 2):
                at = (group * PAIRS + pair) * GROUP
                _pack_across(values, start + 2 * pair, stop, first + group * GROUP, count, to[at : at + GROUP])
    else:
        for row in range(rows):
            _pack_along(values[first + row, start:stop], to[row * PAIRS : (row + 1) * PAIRS])


@inlined
def _pack_panel(values: Any, turned: bool, panel: int, start: int, stop: int, to: Any) -> None:
    """Pack terms of some columns of the right factor."""
    first = panel * COLUMNS
    if turned:
        count, whole = min(COLUMNS, len(values) - first), 0
        if count == COLUMNS:
            whole = (stop - start) // (2 * LANES) * LANES
            for column in range(0, COLUMNS, LANES):
                for pair in range(0, whole, LANES):
                    place = values[first + column, start + 2 * pair :].ctypes.data
                    pair_turned(place, values.shape[1], to[pair, column:].ctypes.data, COLUMNS)
        for column in range(count):
            these, there = values[first + column, start + 2 * whole : stop], to[whole:, column]
            for pair in range(len(these) // 2):
                there[pair] = _pair(these[2 * pair], these[2 * pair + 1])
            if len(these) % 2 == 1:
                there[len(these) // 2] = _rounded(these[-1])
    else:
        count = min(COLUMNS, values.shape[1] - first)
        for pair in range((stop - start + 1) // 2):
            _pack_across(values, start + 2 * pair, stop, first, count, to[pair])


@kernel
def _pack_blocks(left: Any, turned: bool, packed: Any, start: int, terms: int, part: int, last_part: int) -> None:
    rows = left.shape[1] if turned else left.shape[0]
    for block in range(part, last_part):
        first = block * BLOCK
        for chunk in range(packed.shape[1]):
            at = start + chunk * 2 * PAIRS
            _pack_block(
                left,
                turned,
                first,
                min(BLOCK, rows - first),
                at,
                min(at + 2 * PAIRS, start + terms),
                packed[block, chunk],
            )


@kernel
def _pack_panels(right: Any, turned: bool, packed: Any, start: int, terms: int, part: int, last_part: int) -> None:
    for chunk in range(part, last_part):
        at = start + chunk * 2 * PAIRS
        for panel in range(packed.shape[1]):
            _pack_panel(right, turned, panel, at, min(at + 2 * PAIRS, start + terms), packed[chunk, panel])


@inlined
def _multiply(
    left: Any,
    turned: bool,
    first: int,
    last: int,
    right: Any,
    panel: int,
    pairs: int,
    add: int,
    out: Any,
    at_edge: Any,
) -> None:
    """Add the products of packed rows and one panel of packed columns."""
    row, column = (1, GROUP) if turned else (PAIRS, 1)
    width = out.shape[1]
    j = panel * COLUMNS
    b = right.ctypes.data
    for i in range(first, last, ROWS):
        within = i - first
        at = within // GROUP * PAIRS * GROUP + within % GROUP if turned else within * PAIRS
        a = left[at:].ctypes.data
        rows, columns = min(ROWS, last - i), min(COLUMNS, width - j)
        whole = rows == ROWS and columns == COLUMNS
        to = out[i, j:].ctypes.data if whole else at_edge.ctypes.data
        multiply_tile(a, row, column, b, pairs, to, width if whole else COLUMNS, add if whole else 0)
        if not whole:
            for r in range(rows):
                for c in range(columns):
                    out[i + r, j + c] = at_edge[r, c] + (out[i + r, j + c] if add else _NOTHING)


@kernel
def _multiply_panels(
    packed: Any,
    left_turned: bool,
    right: Any,
    turned: bool,
    out: Any,
    start: int,
    terms: int,
    add: int,
    part: int,
    last_part: int,
) -> None:
    to = np.empty((PAIRS, COLUMNS), np.uint32)
    at_edge = np.empty((ROWS, COLUMNS), np.float32)
    for panel in range(part, last_part):
        for chunk in range(packed.shape[1]):
            at = start + chunk * 2 * PAIRS
            stop = min(at + 2 * PAIRS, start + terms)
            _pack_panel(right, turned, panel, at, stop, to)
            pairs, there = (stop - at + 1) // 2, add if chunk == 0 else 1
            for block in range(packed.shape[0]):
                first = block * BLOCK
                last = min(first + BLOCK, len(out))
                _multiply(packed[block, chunk], left_turned, first, last, to, panel, pairs, there, out, at_edge)


@kernel
def _multiply_groups(
    left: Any,
    turned: bool,
    packed: Any,
    out: Any,
    start: int,
    terms: int,
    add: int,
    part: int,
    last_part: int,
) -> None:
    to = np.empty(BLOCK * PAIRS, np.uint32)
    at_edge = np.empty((ROWS, COLUMNS), np.float32)
    end = min(last_part * GROUP, len(out))
    for first in range(part * GROUP, end, BLOCK):
        last = min(first + BLOCK, end)
        for chunk in range(packed.shape[0]):
            at = start + chunk * 2 * PAIRS
            stop = min(at + 2 * PAIRS, start + terms)
            _pack_block(left, turned, first, last - first, at, stop, to)
            pairs, there = (stop - at + 1) // 2, add if chunk == 0 else 1
            for panel in range(packed.shape[1]):
                _multiply(to, turned, first, last, packed[chunk, panel], panel, pairs, there, out, at_edge)
