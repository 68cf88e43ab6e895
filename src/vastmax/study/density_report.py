"""A study of density estimation as a table for the terminal, a table for machines, and a figure."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from vastmax.study.density import QUANTITIES
from vastmax.tasks.files import RESULTS, check_free, whole, write_json

__all__ = ["check_free", "draw", "legend", "terminal_table", "verdict", "write_study"]

NAMES = {"precision": "precision", "log_partition": "log Z"}
NOISE_NAMES = {
    "standard-normal": "standard normal noise",
    "gaussian": "Gaussian noise fitted to the data",
    "uniform": "uniform noise around the data",
}
MARKERS = "osv^DPX*"


def write_study(results: dict[str, Any], folder: Path) -> None:
    """Write `density.csv`, `density.png` and `results.json`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "density.csv") as draft:
        write_table(results, draft)
    with whole(folder / "density.png") as draft:
        draw(results).savefig(draft, dpi=130, format="png")
    write_json(folder / RESULTS, results)


def write_table(results: dict[str, Any], path: Path) -> None:
    """Write every figure, one line per estimator, sample size and quantity."""
    lines = [
        {
            "estimator": curve["estimator"],
            "k": curve["k"],
            "n": point["n"],
            "quantity": name,
            **point[name],
            "seconds": point["seconds"],
            "unconverged": point["unconverged"],
        }
        for curve in results["curves"]
        for point in curve["points"]
        for name in QUANTITIES
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def columns(results: dict[str, Any]) -> list[str]:
    """Return the headings of the terminal's table."""
    return ["", "estimator", *(f"n = {n:,}" for n in results["options"]["sample_sizes"]), "rate", "x ML"]


def rows(results: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the terminal's table."""
    return [
        [
            NAMES[name],
            curve["estimator"],
            *(f"{point[name]['median']:.2g}" for point in curve["points"]),
            "-" if curve["rate"][name] is None else f"{curve['rate'][name]:.2f}",
            f"{excess(results, curve, name):.2f}",
        ]
        for name in QUANTITIES
        for curve in results["curves"]
    ]


def excess(results: dict[str, Any], curve: dict[str, Any], name: str) -> float:
    """Return the error as a multiple of maximum likelihood's, by the geometric mean over the sample sizes."""
    pairs = zip(curve["points"], results["curves"][0]["points"], strict=True)
    return geometric_mean([point[name]["median"] / best[name]["median"] for point, best in pairs])


def terminal_table(results: dict[str, Any]) -> Table:
    """Return the study as a table for the terminal."""
    table = Table(title=heading(results), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns(results)):
        table.add_column(column.replace(" = ", " =\n"), justify="left" if i < 2 else "right", no_wrap=True)
    for i, row in enumerate(rows(results)):
        table.add_row(*row, end_section=i == len(results["curves"]) - 1)
    return table


def heading(results: dict[str, Any]) -> str:
    """Return the title of the study."""
    options = results["options"]
    return f"Gaussians of {options['features']} features, {NOISE_NAMES[options['noise']]}"


def legend(results: dict[str, Any]) -> str:
    """Say what the columns of the table are."""
    unconverged = sum(point["unconverged"] for curve in results["curves"] for point in curve["points"])
    stopped = f" {unconverged} fits had not converged." if unconverged else ""
    return (
        "Squared errors, mean of the precision's entries and of log Z: medians of "
        f"{results['options']['repeats']} repeats. rate: slope of log error against log n. x ML: times the error "
        "of maximum likelihood, which knows how a Gaussian is normalised, geometric mean over the sample sizes."
        f"{stopped}"
    )


def verdict(results: dict[str, Any]) -> str:
    """Say in a sentence or two what the table shows."""
    contrastive = results["curves"][1:]
    said = "; ".join(
        f"{NAMES[name]}, "
        + ", ".join(f"{excess(results, curve, name):.2f} with k = {curve['k']:,}" for curve in contrastive)
        for name in QUANTITIES
    )
    return f"Squared errors of NCE as a multiple of maximum likelihood's: {said}."


def draw(results: dict[str, Any]) -> Figure:
    """Draw the squared errors of precision and log Z against the sample size, and their quartiles."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), QUANTITIES, strict=True):
        for i, curve in enumerate(results["curves"]):
            n = [point["n"] for point in curve["points"]]
            low, median, high = (
                [point[name][part] for point in curve["points"]] for part in ("low", "median", "high")
            )
            style: dict[str, Any] = {
                "color": f"C{i - 1}",
                "marker": MARKERS[(i - 1) % len(MARKERS)],
                "markersize": 5,
            }
            if curve["k"] is None:
                style = {"color": "black", "linestyle": "--", "zorder": 3}
            axes.plot(n, median, label=curve["estimator"], **style)
            axes.fill_between(n, low, high, color=style["color"], alpha=0.08, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("points of data n")
        axes.set_ylabel(f"squared error of {NAMES[name]}")
        axes.grid(True, alpha=0.25)
    axes.legend()
    figure.suptitle(f"{heading(results)}: median and quartiles of {results['options']['repeats']} repeats")
    return figure
