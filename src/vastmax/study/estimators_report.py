"""A study of estimators as a table for the terminal, a table for machines, and a figure."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vastmax.study.gradients import PARTS
from vastmax.study.implied import unit_gain
from vastmax.tasks.files import RESULTS, whole, write_json

SHOWN = 4
"""Numbers of samples that the terminal's table has a column for: the largest."""

COLOURS = {
    "sampled": "#1f77b4",
    "sampled-distinct": "#6a51a3",
    "importance": "#1b9e77",
    "nce": "#d95f02",
    "one-vs-each": "#666666",
}
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")
LEAST_ERROR = 1e-4
"""Smaller errors, as of a set of all classes, lie below the axis."""


def write_study(results: dict[str, Any], folder: Path) -> None:
    """Write `estimators.csv`, `estimators.png` and `results.json`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "estimators.csv") as draft:
        write_table(results, draft)
    with whole(folder / "estimators.png") as draft:
        draw(results).savefig(draft, dpi=130, format="png")
    write_json(folder / RESULTS, results)


def write_table(results: dict[str, Any], path: Path) -> None:
    """Write every figure, one line per estimator, sampler, k and part of the gradient."""
    lines = [
        {
            "estimator": curve["estimator"],
            "sampler": curve["sampler"],
            **{name: value for name, value in point.items() if name not in PARTS},
            "gradient": part,
            **point[part],
        }
        for curve in results["curves"]
        for point in curve["points"]
        for part in PARTS
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def columns(results: dict[str, Any]) -> list[str]:
    """Return the headings of the terminal's table."""
    errors = [f"k = {k:,}" for k in shown(results)]
    return ["estimator", "sampler", *errors, f"k for {share(results['options']['accuracy'])}", "k for noise"]


def rows(results: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the terminal's table: errors of the class rows' gradient, and what they imply."""
    table = []
    for curve in results["curves"]:
        errors = {point["k"]: share(point["class_rows"]["error"]) for point in curve["points"]}
        table.append(
            [
                curve["estimator"],
                curve["sampler"],
                *(errors.get(k, "-") for k in shown(results)),
                answer(curve["implied"]["class_rows"]),
                answer(curve["implied"]["mini_batch_noise"]),
            ]
        )
    return table


def shown(results: dict[str, Any]) -> list[int]:
    """The numbers of samples with a column."""
    return list(results["options"]["num_samples"])[-SHOWN:]


def terminal_table(results: dict[str, Any]) -> Table:
    """Return the study as a table for the terminal."""
    table = Table(title=Text(heading(results)), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns(results)):
        header = column.replace(" = ", " =\n").replace(" for ", " for\n")
        table.add_column(header, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows(results):
        table.add_row(*row)
    return table


def legend(results: dict[str, Any]) -> str:
    """Say what the columns of the table are."""
    accuracy = share(results["options"]["accuracy"])
    noise = share(results["problem"]["mini_batch_noise"])
    return (
        "Errors are root mean squares, relative to the exact gradient of the class rows. "
        f"k for {accuracy}: samples for that error; ~ and > mark extrapolation, brackets a bias that stays. "
        "k for noise: samples for an error, at equal length along the exact gradient, as large as the exact "
        f"gradient's own from one mini-batch of {results['problem']['rows']:,} rows to another, {noise}."
    )


def verdict(results: dict[str, Any]) -> str:
    """Say in a sentence or two what the table shows."""
    accuracy = share(results["options"]["accuracy"])
    reached = [curve for curve in results["curves"] if curve["implied"]["class_rows"]["num_samples"] is not None]
    said = f"No estimator comes within {accuracy} of the exact gradient."
    if reached:
        best = min(reached, key=lambda curve: int(curve["implied"]["class_rows"]["num_samples"]))
        said = (
            f"Fewest samples for an error of {accuracy}: {best['estimator']} with {best['sampler']} noise "
            f"({answer(best['implied']['class_rows'])})."
        )
    nce = [curve for curve in results["curves"] if curve["estimator"] == "nce" and len(curve["points"]) > 1]
    if nce:
        curve = max(nce, key=lambda curve: float(curve["points"][-1]["class_rows"]["cosine"]))
        first, last = curve["points"][0], curve["points"][-1]
        said += (
            f" NCE with {curve['sampler']} noise: the cosine with maximum likelihood's gradient goes from "
            f"{first['class_rows']['cosine']:.3f} at k = {first['k']:,} to {last['class_rows']['cosine']:.3f} "
            f"at k = {last['k']:,}."
        )
    return said


def heading(results: dict[str, Any]) -> str:
    """Return the title of the study."""
    problem, options = results["problem"], results["options"]
    sets = "one set of candidates" if options["shared"] else "a set of candidates per row"
    return f"{problem['source']}, {problem['num_classes']:,} classes, {problem['rows']:,} rows, {sets}"


def draw(results: dict[str, Any]) -> Figure:
    """Draw error, error at equal length, and cosine against the number of samples; colour by estimator."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    error, rescaled, cosine = figure.subplots(1, 3)
    styles = styles_of([curve["sampler"] for curve in results["curves"]])
    for curve in results["curves"]:
        ks = [point["k"] for point in curve["points"]]
        parts = [point["class_rows"] for point in curve["points"]]
        style = {"color": COLOURS[curve["estimator"]], "markersize": 4, **styles[curve["sampler"]]}
        error.plot(ks, [part["error"] for part in parts], **style)
        rescaled.plot(ks, [unit_gain(part)["error"] for part in parts], **style)
        cosine.plot(ks, [part["cosine"] for part in parts], **style)
    mark(error, results["options"]["accuracy"], "wanted")
    mark(rescaled, results["problem"]["mini_batch_noise"], "noise of the mini-batch")
    for axes, label in (
        (error, "relative error"),
        (rescaled, "relative error at equal length along the exact one"),
        (cosine, "mean cosine with the exact gradient"),
    ):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("samples k")
        axes.set_ylabel(label)
        axes.grid(True, alpha=0.25)
    for axes in (error, rescaled):
        axes.set_yscale("log")
        drawn = [float(y) for line in axes.lines for y in line.get_ydata()]
        axes.set_ylim(bottom=min((y for y in drawn if y > LEAST_ERROR), default=LEAST_ERROR) / 2)
    cosine.set_ylim(top=1.02)
    estimators = dict.fromkeys(curve["estimator"] for curve in results["curves"])
    handles = [Line2D([], [], color=COLOURS[name], linewidth=3, label=name) for name in estimators]
    handles += [Line2D([], [], color="#222222", label=name, **style) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside right center")
    figure.suptitle(f"Gradient of the class rows: {heading(results)}")
    return figure


def styles_of(names: list[str]) -> dict[str, dict[str, Any]]:
    """Give each sampler a line and a marker of its own."""
    return {
        name: {"linestyle": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(dict.fromkeys(names))
    }


def mark(axes: Axes, level: float, label: str) -> None:
    """Draw a level across."""
    axes.axhline(level, color="#b2182b", linewidth=1, linestyle=(0, (6, 3)))
    axes.annotate(
        f"{label}: {share(level)}",
        (0.02, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color="#b2182b",
        fontsize=8,
        zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
    )


def share(value: float) -> str:
    """Write a share for a reader: a percentage, or from ten on a multiple."""
    if value >= 10:
        return f"{value / 1000:.1f}kx" if value >= 1000 else f"{value:.0f}x"
    percent = 100 * value
    if percent < 0.05:
        return "<0.1%" if percent > 0 else "0%"
    return f"{percent:.1f}%" if percent < 9.95 else f"{percent:.0f}%"


def answer(implied: dict[str, Any]) -> str:
    """Write an implied number of samples for a reader, with no more digits than are known."""
    if implied["num_samples"] is None:
        return f"({share(implied['bias'])})"
    number = float(format(implied["num_samples"], ".2g"))
    written = f"{number / 1e6:g}M" if number >= 1e6 else f"{number:,.0f}"
    return {"at most": "<=", "between": "", "beyond": "~", "more than": ">"}[implied["how"]] + written
