"""Plots of the measurements: step time against classes, times over the floor, memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.rows import Row
from vastmax.tasks.files import whole

OURS, THEIRS = "tab:blue", "0.7"


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Draw what there is."""
    draw_steps(
        [row for row in rows if row.classes is not None and row.measure.startswith("sampled step")],
        folder / "step_time.png",
    )
    over = [(label(row), row.over_floor, ours(row)) for row in rows if row.over_floor is not None]
    draw_bars(over, "times the floor", folder / "over_floor.png", mark=1.0)
    memory = [(label(row), row.peak_bytes / 1e6, ours(row)) for row in rows if row.peak_bytes]
    draw_bars(memory, "peak memory, MB", folder / "memory.png")


def draw_steps(rows: Sequence[Row], path: Path) -> None:
    """Draw the time of a step against the number of classes, and the floor below."""
    if not any(row.seconds for row in rows):
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row.implementation for row in rows):
        points = [
            (row.classes, 1000 * row.seconds.median) for row in rows if row.implementation == name and row.seconds
        ]
        style = "-" if name.startswith("vastmax") else "--"
        axes.plot(*zip(*points, strict=True), style, marker="o", label=name) if points else None
    floors = sorted({row.classes: row.floor.seconds for row in rows if row.classes and row.floor}.items())
    if floors:
        axes.plot([v for v, _ in floors], [1000 * s for _, s in floors], "k:", label="floor")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("classes")
    axes.set_ylabel("ms per step, optimizer included")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize="small")
    save(figure, path)


def draw_bars(bars: Sequence[tuple[str, float, bool]], title: str, path: Path, mark: float | None = None) -> None:
    """Draw a bar for each row, ours in colour, on a logarithmic axis."""
    if not bars:
        return
    figure = Figure(figsize=(11, 1.2 + 0.2 * len(bars)), layout="constrained")
    axes = figure.subplots()
    names = [f"{i + 1}. {name}" for i, (name, _, _) in enumerate(bars)]
    axes.barh(names, [value for _, value, _ in bars], color=[OURS if mine else THEIRS for _, _, mine in bars])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(title)
    axes.tick_params(axis="y", labelsize="xx-small")
    axes.margins(y=0.005)
    axes.grid(True, axis="x", which="both", alpha=0.25)
    if mark is not None:
        axes.axvline(mark, color="black", linewidth=1)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a plot, whole or not at all."""
    with whole(path) as draft:
        figure.savefig(draft, dpi=130, format="png")


def ours(row: Row) -> bool:
    """Whether a row is about vastmax."""
    return row.implementation.startswith("vastmax")


def label(row: Row) -> str:
    """Name a bar."""
    size = "" if row.classes is None else f", V={row.classes:,}"
    return f"{row.measure.split(',')[0]}{size}: {row.implementation}"
