"""The processor's instruction that multiplies pairs of bfloat16 numbers and sums in float32, and what it wants.

No compiler finds the instruction in a loop. So what has to stay in registers is written down here as the compiler
is to have it: numbers rounded and paired 16 at a time, and a tile of a product whose sums take 24 of 32 registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Pairs in a register."""

ROWS, COLUMNS = 6, 64
"""Shape of a tile."""

_intrinsic: Any = intrinsic
_cgutils: Any = cgutils
_config: Any = config
_INSTRUCTION = "llvm.x86.avx512bf16.dpbf16ps.512"
_INT64, _PAIR, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_PAIRS, _SUMS = ir.VectorType(_PAIR, LANES), ir.VectorType(_FLOAT, LANES)
_NO_PAIRS = ir.Constant(_PAIRS, ir.Undefined)


def has_instruction() -> bool:
    """Return whether the processor says that it has it, and Numba compiles for this processor.

    To try would end the process of one that has not, and so would a compiler that is told of another processor.
    """
    for_this_one = _config.CPU_NAME is None and _config.CPU_FEATURES is None and _config.ENABLE_AVX
    return bool(for_this_one and binding.get_host_cpu_features().get("avx512bf16", False))


@_intrinsic  # type: ignore[untyped-decorator]
def pair_across(typing: Any, first: Any, second: Any, to: Any) -> Any:
    """Round and pair 16 float32 numbers with 16 others; all three are addresses."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, to = (_at(builder, address, _PAIRS) for address in arguments)
        _store(builder, _paired(builder, _load(builder, first), _load(builder, second)), to)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), write


@_intrinsic  # type: ignore[untyped-decorator]
def pair_along(typing: Any, values: Any, to: Any) -> Any:
    """Round and pair 32 float32 numbers with their neighbours; both are addresses."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, to = arguments
        _store(builder, _paired_along(builder, values), _at(builder, to, _PAIRS))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), write


@_intrinsic  # type: ignore[untyped-decorator]
def pair_turned(typing: Any, values: Any, width: Any, to: Any, columns: Any) -> Any:
    """Round and pair 32 numbers of each of 16 rows, and store the 16 pairs of a place side by side.

    Args:
        typing: of Numba.
        values: address of the first number.
        width: numbers from one row to the next.
        to: address of the first pair.
        columns: pairs from one place to the next.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, width, to, columns = arguments
        rows = [_paired_along(builder, _next(builder, values, width, i)) for i in range(LANES)]
        for i, row in enumerate(_turned(builder, rows)):
            _store(builder, row, _at(builder, _next(builder, to, columns, i), _PAIRS))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), write


@_intrinsic  # type: ignore[untyped-decorator]
def multiply_tile(
    typing: Any, a: Any, row: Any, column: Any, b: Any, pairs: Any, out: Any, width: Any, add: Any
) -> Any:
    """Make, or add, the products (ROWS, COLUMNS) of pairs.

    Args:
        typing: of Numba.
        a: address of the first pair of the left factor.
        row: pairs from one of its rows to the next.
        column: pairs from one pair of a row to the next.
        b: address of the right factor's pairs (pairs, COLUMNS).
        pairs: how many are summed.
        out: address of the first sum.
        width: sums from one row to the next.
        add: 1 to add to what is there, 0 to write over it.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, row, column, b, pairs, out, width, add = arguments
        a, b = _at(builder, a, _PAIR), _at(builder, b, _PAIRS)
        instruction = _cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_SUMS, [_SUMS, _PAIRS, _PAIRS]), _INSTRUCTION
        )
        registers = COLUMNS // LANES
        tile = {(i, j): _cgutils.alloca_once(builder, _SUMS) for i in range(ROWS) for j in range(registers)}
        outs = {
            (i, j): _at(builder, builder.add(_next(builder, out, width, i), _INT64(4 * LANES * j)), _SUMS)
            for i, j in tile
        }
        with builder.if_else(builder.icmp_signed("!=", add, _INT64(0))) as (there, not_there):
            with there:
                for place, sums in tile.items():
                    builder.store(_load(builder, outs[place]), sums)
            with not_there:
                for sums in tile.values():
                    builder.store(ir.Constant(_SUMS, None), sums)
        with _cgutils.for_range(builder, pairs) as loop:
            first = builder.mul(loop.index, _INT64(registers))
            of_columns = [_load(builder, builder.gep(b, [builder.add(first, _INT64(j))])) for j in range(registers)]
            offset = builder.mul(loop.index, column)
            for i in range(ROWS):
                place = builder.add(offset, builder.mul(row, _INT64(i)))
                pair = _spread(builder, builder.load(builder.gep(a, [place]), align=4))
                for j in range(registers):
                    found = builder.call(instruction, [builder.load(tile[i, j]), pair, of_columns[j]])
                    builder.store(found, tile[i, j])
        for place, sums in tile.items():
            _store(builder, builder.load(sums), outs[place])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), write


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _next(builder: Any, address: Any, width: Any, times: int) -> Any:
    """The address so many times `width` numbers of 4 bytes further on."""
    return builder.add(address, builder.mul(width, _INT64(4 * times)))


def _load(builder: Any, pointer: Any) -> Any:
    return builder.load(pointer, align=4)


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, pointer, align=4)


def _spread(builder: Any, pair: Any) -> Any:
    """The same pair in every lane."""
    one = builder.insert_element(_NO_PAIRS, pair, _PAIR(0))
    return builder.shuffle_vector(one, _NO_PAIRS, ir.Constant(_PAIRS, [0] * LANES))


def _lanes(builder: Any, one: Any, other: Any, places: Sequence[int]) -> Any:
    """The lanes of two registers, one's counted first, at these places."""
    return builder.shuffle_vector(one, other, ir.Constant(_PAIRS, list(places)))


def _each(number: int) -> Any:
    return ir.Constant(_PAIRS, [number] * LANES)


def _nearest(builder: Any, bits: Any) -> Any:
    """The bits of float32 numbers, of which the upper half is the nearest bfloat16 number, of two the even one."""
    odd = builder.and_(builder.lshr(bits, _each(16)), _each(1))
    nearest = builder.add(builder.add(bits, _each(0x7FFF)), odd)
    is_number = builder.icmp_unsigned("<=", builder.and_(bits, _each(0x7FFFFFFF)), _each(0x7F800000))
    return builder.select(is_number, nearest, _each(0x7FC00000))


def _paired(builder: Any, first: Any, second: Any) -> Any:
    lower = builder.lshr(_nearest(builder, first), _each(16))
    return builder.or_(lower, builder.and_(_nearest(builder, second), _each(0xFFFF0000)))


def _paired_along(builder: Any, values: Any) -> Any:
    """The pairs of 32 numbers with their neighbours."""
    these = _load(builder, _at(builder, values, _PAIRS))
    others = _load(builder, _at(builder, builder.add(values, _INT64(4 * LANES)), _PAIRS))
    even, odd = (_lanes(builder, these, others, range(first, 2 * LANES, 2)) for first in (0, 1))
    return _paired(builder, even, odd)


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of a square of 16 registers: blocks of 1, 2, 4 and 8 lanes change places across the diagonal."""
    rows, size = list(rows), 1
    while size < LANES:
        for i in range(LANES):
            if i & size == 0:
                one, other = rows[i], rows[i + size]
                upper = [LANES + lane - size if lane & size else lane for lane in range(LANES)]
                lower = [LANES + lane if lane & size else lane + size for lane in range(LANES)]
                rows[i], rows[i + size] = _lanes(builder, one, other, upper), _lanes(builder, one, other, lower)
        size *= 2
    return rows
