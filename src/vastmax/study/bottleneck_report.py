"""A study of the softmax bottleneck as a table for the terminal, a table for machines, and a figure."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vastmax.tasks.files import RESULTS, check_free, whole, write_json

__all__ = ["check_free", "draw", "legend", "terminal_table", "verdict", "write_study"]

MARKERS = "osv^DPX*"
LEAST_KL = 1e-9
"""Nats. A divergence below this is drawn, and compared, as this: it is what the optimizer left."""
LEAST_SHOWN = 1e-19
"""Singular values over the largest: the rounding of float64, and not what is 0 beneath it."""
LIMIT: dict[str, Any] = {"color": "#222222", "linewidth": 1, "linestyle": (0, (6, 3))}


def write_study(results: dict[str, Any], folder: Path) -> None:
    """Write `bottleneck.csv`, `bottleneck.png` and `results.json`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "bottleneck.csv") as draft:
        write_table(results, draft)
    with whole(folder / "bottleneck.png") as draft:
        draw(results).savefig(draft, dpi=130, format="png")
    write_json(folder / RESULTS, results)


def write_table(results: dict[str, Any], path: Path) -> None:
    """Write every figure, one line per head and width, or per run and singular value."""
    if "runs" in results:
        lines = [
            {**{name: value for name, value in run.items() if name != "spectrum"}, "index": i, "singular_value": s}
            for run in results["runs"]
            for i, s in enumerate(run["spectrum"], start=1)
        ]
    else:
        lines = [{"head": curve["head"], **point} for curve in results["curves"] for point in curve["points"]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def columns(results: dict[str, Any]) -> list[str]:
    """Return the headings of the terminal's table."""
    if "runs" in results:
        return ["run", "head", "d", "classes", "parameters", "rank", "bound"]
    return ["", "head", *(f"d = {width:,}" for width in results["options"]["widths"])]


def rows(results: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the terminal's table."""
    if "runs" in results:
        return [
            [run["run"], run["head"]]
            + [number(run[name]) for name in ("width", "num_classes", "parameters", "rank", "rank_bound")]
            for run in results["runs"]
        ]
    return [
        [title, curve["head"], *(write(point[name]) for point in curve["points"])]
        for name, title, write in FIGURES
        for curve in results["curves"]
    ]


def number(value: int | None) -> str:
    """Write a whole number for a reader, a dash if there is none."""
    return "-" if value is None else f"{value:,}"


FIGURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("kl", "KL", "{:.2g}".format),
    ("rank", "rank", number),
    ("parameters", "parameters", number),
)
"""What the table of fits has a section of: its key, its name, and how it is written."""


def terminal_table(results: dict[str, Any]) -> Table:
    """Return the study as a table for the terminal."""
    table = Table(title=Text(heading(results)), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns(results)):
        table.add_column(column, justify="left" if i < 2 else "right", overflow="fold" if i == 0 else "ellipsis")
    for row, following in pairwise([*rows(results), [""]]):
        table.add_row(*row, end_section="runs" not in results and row[0] != following[0])
    return table


def heading(results: dict[str, Any]) -> str:
    """Return the title of the study."""
    options = results["options"]
    if "runs" in results:
        return f"Log-probabilities of {options['rows']:,} contexts of test text"
    return (
        f"{options['contexts']:,} contexts, {options['num_classes']:,} classes, "
        f"log-probabilities of rank {results['true_rank']:,}"
    )


def legend(results: dict[str, Any]) -> str:
    """Say what the columns of the table are."""
    if "runs" in results:
        return (
            "rank: singular values above max(N, V) 2^-52 of the largest, of log-probabilities in float64. bound: "
            "d + 2, of a softmax with a bias, whatever the contexts; - where there is none."
        )
    options = results["options"]
    enough = min(options["contexts"], options["num_classes"]) - 1
    return (
        f"KL: mean divergence from the truth, in nats, after {options['steps']:,} steps of Adam, which the best of "
        f"its width may be below; a softmax of d = {enough:,} has 0 within reach. rank: of the log-probabilities "
        "fitted. parameters: of the head and of a vector per context; at equal ones, the softmax's KL is read "
        "between its widths."
    )


def at_equal_parameters(softmax: list[dict[str, Any]], parameters: int) -> float | None:
    """Return the softmax's divergence at a number of parameters, None outside those it was fitted with.

    Between two widths log KL is linear in the log of the number of parameters.
    """
    known = [point["parameters"] for point in softmax]
    if not known[0] <= parameters <= known[-1]:
        return None
    log_kl = np.log([max(point["kl"], LEAST_KL) for point in softmax])
    return float(np.exp(np.interp(np.log(parameters), np.log(known), log_kl)))


def excess(results: dict[str, Any], points: list[dict[str, Any]], *, equal: str) -> float | None:
    """Return a head's divergence over the softmax's, the median over its widths, None where nothing compares.

    `equal` is what the two have in common, `"width"` or `"parameters"`.
    """
    softmax = next((curve["points"] for curve in results["curves"] if curve["head"] == "softmax"), None)
    if softmax is None:
        return None
    ratios = [
        max(point["kl"], LEAST_KL) / max(yardstick, LEAST_KL)
        for point, same in zip(points, softmax, strict=True)
        if (yardstick := same["kl"] if equal == "width" else at_equal_parameters(softmax, point["parameters"]))
        is not None
    ]
    return median(ratios) if ratios else None


def verdict(results: dict[str, Any]) -> str:
    """Say in a few sentences what the table shows."""
    if "runs" in results:
        return " ".join(verdict_of_run(run) for run in results["runs"])
    full = results["true_rank"]
    said = []
    for curve in results["curves"]:
        ranks = [point["rank"] for point in curve["points"]]
        least, most = min(ranks), max(ranks)
        spread = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        first, last = curve["points"][0], curve["points"][-1]
        line = (
            f"{curve['head']}: rank {spread} of {full:,}, KL {first['kl']:.2g} nats at d = {first['width']:,} "
            f"and {last['kl']:.2g} at d = {last['width']:,}"
        )
        if curve["head"] != "softmax":
            compared = {equal: excess(results, curve["points"], equal=equal) for equal in ("width", "parameters")}
            line += "".join(
                f"; {ratio:.2f} times the softmax's at equal {equal} (median)"
                for equal, ratio in compared.items()
                if ratio is not None
            )
        said.append(f"{line}.")
    return " ".join(said)


def verdict_of_run(run: dict[str, Any]) -> str:
    """Say whether a trained model's rank passes that of a softmax."""
    bound = run["width"] + 2
    limit = "above" if run["rank"] > bound else "at" if run["rank"] == bound else "below"
    of = min(len(run["spectrum"]), run["num_classes"])
    return f"{run['run']} ({run['head']}): rank {run['rank']:,} of {of:,}, {limit} d + 2 = {bound:,}."


def draw(results: dict[str, Any]) -> Figure:
    """Draw the divergences and ranks of the heads, or the spectra of the runs."""
    if "runs" in results:
        return draw_runs(results)
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    by_width, by_parameters, ranks = figure.subplots(1, 3)
    for i, curve in enumerate(results["curves"]):
        points = curve["points"]
        style: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "markersize": 5, "label": curve["head"]}
        if curve["head"] == "softmax":
            style |= {"color": "black", "linestyle": "--", "zorder": 3}
        kl = [max(point["kl"], LEAST_KL) for point in points]
        widths = [point["width"] for point in points]
        by_width.plot(widths, kl, **style)
        by_parameters.plot([point["parameters"] for point in points], kl, **style)
        ranks.plot(widths, [point["rank"] for point in points], **style)
    widths = results["options"]["widths"]
    ranks.axhline(results["true_rank"], **LIMIT)
    ranks.annotate("the truth", (widths[0], results["true_rank"]), xytext=(0, 3), textcoords="offset points")
    axis(by_width, "width d", "KL divergence from the truth, nats")
    axis(by_parameters, "parameters", "KL divergence from the truth, nats")
    axis(ranks, "width d", "rank of the log-probabilities")
    ranks.set_yscale("linear")
    for axes in (by_width, ranks):
        axes.set_xticks(widths, [f"{width:,}" for width in widths], minor=False)
        axes.set_xticks([], minor=True)
    by_width.legend()
    figure.suptitle(heading(results))
    return figure


def draw_runs(results: dict[str, Any]) -> Figure:
    """Draw the singular values of each run, and where those of a softmax of its width end."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for i, run in enumerate(results["runs"]):
        # A value that rounding brought to 0 has no logarithm; it is no part of the rank either.
        values = [value if value > 0 else np.nan for value in run["spectrum"]]
        index = range(1, len(values) + 1)
        axes.plot(index, values, color=f"C{i}", label=f"{run['run']}: {run['head']}, rank {run['rank']:,}")
    for bound in sorted({run["width"] + 2 for run in results["runs"]}):
        axes.axvline(bound, **LIMIT)
        axes.annotate(
            f"d + 2 = {bound:,}",
            (bound, 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            va="top",
        )
    axis(axes, "index", "singular value over the largest")
    axes.set_ylim(bottom=LEAST_SHOWN)
    axes.legend()
    figure.suptitle(heading(results))
    return figure


def axis(axes: Axes, x: str, y: str) -> None:
    """Name the axes and give them logarithmic scales."""
    axes.set_xscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_yscale("log")
    axes.grid(True, alpha=0.25)
