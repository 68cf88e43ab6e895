"""From what was timed side by side to rows with floors, ratios and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.rows import Floor, Row, Seconds, Target
from benchmarks.timing import Measured

Judge = Callable[[str], Sequence[Target]]
"""From the name of an implementation to the targets that its figures are held to."""


def rows_of(
    measure: str,
    found: Mapping[str, Measured],
    *,
    floor: Floor | None = None,
    floors: Mapping[str, Floor | None] | None = None,
    peers: Mapping[str, str] | None = None,
    targets: Judge | None = None,
    classes: int | None = None,
) -> list[Row]:
    """Return a row per implementation.

    Args:
        measure: what is measured, with everything that is fixed.
        found: what came of each implementation.
        floor: of all of them.
        floors: of implementations that have another one.
        peers: names of ratios, each to one of the implementations, such as {"over torch": "torch"}.
        targets: the targets of an implementation.
        classes: V.
    """
    rows = []
    for name, measured in found.items():
        ratios = {}
        for ratio, peer in (peers or {}).items():
            value = measured.over(found[peer]) if peer in found and peer != name else None
            if value is not None:
                ratios[ratio] = value
        rows.append(
            Row(
                measure=measure,
                implementation=name,
                classes=classes,
                seconds=Seconds.of(measured.seconds) if measured.median is not None else None,
                floor=(floors or {}).get(name, floor),
                peak_bytes=measured.peak_bytes,
                resident_bytes=measured.resident_bytes,
                ratios=ratios,
                targets=tuple(targets(name)) if targets is not None else (),
                note=measured.problem,
            )
        )
    return rows


def over_floor(measured: Measured, floor: Floor | None) -> float | None:
    """Return the median over the floor, None where one has no figure."""
    if measured.median is None or floor is None:
        return None
    return measured.median / floor.seconds


def inverse(ratio: float | None) -> float | None:
    """Return how many times faster, of how much time over."""
    return None if ratio is None else 1 / ratio


def memory_over(mine: Measured, other: Measured) -> float | None:
    """Return the ratio of peak memories, None where one has no figure."""
    if mine.peak_bytes is None or not other.peak_bytes:
        return None
    return mine.peak_bytes / other.peak_bytes


def milliseconds(measured: Measured) -> float | None:
    """Return the median in milliseconds, None without a figure."""
    return None if measured.median is None else 1000 * measured.median
