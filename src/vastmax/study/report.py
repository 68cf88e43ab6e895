"""A comparison as a table for the terminal, a figure, and a page that needs nothing beside itself."""

from __future__ import annotations

import base64
import math
from importlib.resources import files
from itertools import compress, cycle
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

COLUMNS = (
    "head",
    "valid ppl",
    "test ppl",
    "vs exact",
    "tokens/s",
    "ms/step",
    "speed-up",
    "step memory",
    "log Z mean",
    "log Z spread",
)
COLOURS = {"exact": "#222222", "sampled": "#1f77b4", "nce": "#d95f02", "negative": "#1b9e77"}
OTHER_COLOURS = ("#9467bd", "#e377c2", "#8c564b", "#bcbd22", "#17becf", "#ff9896", "#98df8a", "#c7c7c7", "#aec7e8")
LONG_NAME = 12


def rows(results: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the comparison's table, one row per head."""
    exact = next((head for head in results["heads"] if head["head"] == "exact"), None)
    table = []
    for head in results["heads"]:
        test = head["test"]["perplexity"]
        loss = speed = "-"
        if exact is not None:
            share = 100 * (test / exact["test"]["perplexity"] - 1)
            loss = f"{share:+.1f}%" if math.isfinite(share) else "-"
            speed = f"{head['tokens_per_second'] / exact['tokens_per_second']:.1f}x"
        table.append(
            [
                head["head"],
                f"{head['valid']['perplexity']:,.1f}",
                f"{test:,.1f}",
                loss,
                f"{head['tokens_per_second']:,.0f}",
                f"{head['ms_per_step']:,.1f}",
                speed,
                megabytes(head["peak_bytes"]),
                f"{head['test']['log_z_mean']:+.2f}",
                f"{head['test']['log_z_std']:.2f}",
            ]
        )
    return table


def terminal_table(results: dict[str, Any]) -> Table:
    """Return the comparison as a table for the terminal, without milliseconds: it is to fit eighty columns."""
    table = Table(title=Text(heading(results)), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown = [column != "ms/step" for column in COLUMNS]
    for column in compress(COLUMNS, shown):
        header = column.replace(" ", "\n").replace("/", "\n/").replace("-", "-\n")  # two short lines
        table.add_column(header, justify="left" if column == "head" else "right", no_wrap=True)
    for name, *cells in rows(results):
        in_two = name.replace("-", "-\n") if len(name) > LONG_NAME else name
        table.add_row(*compress([in_two, *cells], shown))
    return table


def verdict(results: dict[str, Any]) -> str:
    """Say in a sentence what the table shows."""
    best = min(results["heads"], key=lambda head: float(head["test"]["perplexity"]))
    fastest = max(results["heads"], key=lambda head: float(head["tokens_per_second"]))
    said = (
        f"Lowest test perplexity: {best['head']} ({best['test']['perplexity']:,.1f}). "
        f"Most tokens per second: {fastest['head']} ({fastest['tokens_per_second']:,.0f})."
    )
    exact = next((head for head in results["heads"] if head["head"] == "exact"), None)
    if exact is not None and best is not exact:
        share = 100 * (best["test"]["perplexity"] / exact["test"]["perplexity"] - 1)
        said += f" {best['head']} is {-share:.1f}% below the exact head's perplexity, {given(results)}."
    return said


def given(results: dict[str, Any]) -> str:
    """Say what every head was given."""
    options = results["options"]
    if options["epochs"] is not None:
        return f"after {options['epochs']:g} epoch{'' if options['epochs'] == 1 else 's'} each"
    return f"after {options['budget']:g} s of training each"


def heading(results: dict[str, Any]) -> str:
    """Return the title of the comparison."""
    return f"{results['text']['name']}, {results['text']['num_classes']:,} classes, {given(results)}"


def draw_curves(results: dict[str, Any], path: Path) -> None:
    """Draw exact validation perplexity against training time and against training tokens."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    others = cycle(OTHER_COLOURS)
    colours = {head["head"]: COLOURS.get(head["head"]) or next(others) for head in results["heads"]}
    for axes, against, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("seconds", "tokens"),
        ("seconds of training", "training tokens"),
        strict=True,
    ):
        for head in results["heads"]:
            curve = head["curve"]
            axes.plot(
                [point[against] for point in curve],
                [point["perplexity"] for point in curve],
                marker="o",
                markersize=3.5,
                color=colours[head["head"]],
                label=head["head"],
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel(label)
        axes.grid(True, which="both", alpha=0.25)
    figure.axes[0].set_ylabel("exact validation perplexity")
    if len(colours) > len(COLOURS):
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    else:
        figure.axes[0].legend()
    figure.suptitle(heading(results))
    figure.savefig(path, dpi=130)


def write_report(results: dict[str, Any], folder: Path) -> Path:
    """Write `curves.png` and `report.html` into a comparison's folder; return the report's path."""
    picture = folder / "curves.png"
    draw_curves(results, picture)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("vastmax.study") / "report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        results=results,
        heading=heading(results),
        verdict=verdict(results),
        given=given(results),
        columns=COLUMNS,
        rows=rows(results),
        picture=base64.b64encode(picture.read_bytes()).decode("ascii"),
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def megabytes(count: int) -> str:
    """Write a number of bytes for a reader."""
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"
