"""The picture of a comparison of classifiers: a line for each head, read across three panels."""

from __future__ import annotations

from itertools import groupby
from statistics import mean
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

COLOURS = {
    "softmax": "#222222",
    "imbalance": "#c2410c",
    "sparse": "#1d6fb8",
    "beyond softmax": "#7c3aed",
    "sampled": "#15803d",
    "tree": "#a16207",
}
SHADES = LinearSegmentedColormap.from_list("shades", ["#eef4fb", "#1d4e89"])
LARGEST_DOT = 190.0
LINE_INCHES = 0.34
DIGIT_INCHES = 0.62
SEEN_SHARE = 0.002
"""Bins with fewer of the rows are left out: their accuracy is chance."""


def draw(results: dict[str, Any], heading: str) -> Figure:
    """Draw macro-F1, reliability, and one hard test row, of every head."""
    heads = results["heads"]
    height = 2.4 + LINE_INCHES * len(heads)
    figure = Figure(figsize=(14, height), layout="constrained")
    grid = figure.subplots(1, 3, width_ratios=(1.0, 1.15, 1.35))
    left, middle, right = grid
    draw_f1(left, heads)
    draw_reliability(middle, heads)
    draw_example(right, results["example"], len(heads))
    for axes in grid:
        axes.set_ylim(len(heads) - 0.5, -0.5)
        axes.set_yticks(range(len(heads)), [])
        axes.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        for edge in family_edges(heads):
            axes.axhline(edge, color="#cccccc", linewidth=0.8, zorder=0)
    left.set_yticks(range(len(heads)), [head["head"] for head in heads])
    for tick, head in zip(left.get_yticklabels(), heads, strict=True):
        tick.set_color(COLOURS[head["family"]])
        tick.set_fontsize(11)
    figure.suptitle(heading, fontsize=13, fontweight="bold")
    return figure


def family_edges(heads: list[dict[str, Any]]) -> list[float]:
    """Return where one family's lines end and another's begin."""
    sizes = [len(list(group)) for _, group in groupby(heads, key=lambda head: head["family"])]
    return [float(edge) - 0.5 for edge in np.cumsum(sizes)[:-1]]


def draw_f1(axes: Axes, heads: list[dict[str, Any]]) -> None:
    """Draw macro-F1: a dot for each seed, a stroke at their mean, and a dashed line at the exact head's."""
    for line, head in enumerate(heads):
        values = [seed["test"]["macro_f1"] for seed in head["seeds"]]
        colour = COLOURS[head["family"]]
        axes.plot([min(values), max(values)], [line, line], color=colour, linewidth=1, alpha=0.5)
        axes.plot(values, [line] * len(values), "o", color=colour, markersize=5, alpha=0.55, markeredgewidth=0)
        axes.plot([mean(values)] * 2, [line - 0.3, line + 0.3], color=colour, linewidth=3)
        if head["head"] == "exact":
            axes.axvline(mean(values), color=colour, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(True, axis="x", alpha=0.25)
    axes.set_title("macro-F1 on test rows\n", fontsize=11)
    axes.set_xlabel("dots: seeds; stroke: their mean; dashed: exact's")


def draw_reliability(axes: Axes, heads: list[dict[str, Any]]) -> None:
    """Draw, bin by bin of confidence, how many predictions there are and how often they are right."""
    dots = None
    for line, head in enumerate(heads):
        bins = [seed["test"]["bins"] for seed in head["seeds"]]
        rows, confidence, correct = (
            np.array([[one[name] for one in seed] for seed in bins]).sum(0)
            for name in ("rows", "confidence", "correct")
        )
        shown = rows > SEEN_SHARE * rows.sum()
        share = rows[shown] / rows.sum()
        gap = (correct[shown] - confidence[shown]) / rows[shown]
        dots = axes.scatter(
            confidence[shown] / rows[shown],
            [line] * int(shown.sum()),
            s=LARGEST_DOT * np.sqrt(share),
            c=gap,
            cmap="RdBu",
            vmin=-0.3,
            vmax=0.3,
            edgecolors="#666666",
            linewidths=0.5,
            clip_on=False,
        )
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(True, axis="x", alpha=0.25)
    axes.set_title("reliability: predictions by their confidence\n", fontsize=11)
    axes.set_xlabel("confidence; a larger dot: more rows")
    if dots is not None and axes.figure is not None:
        bar = axes.figure.colorbar(dots, ax=axes, fraction=0.035, pad=0.02)
        bar.set_ticks([-0.3, 0.0, 0.3], labels=["over-\nconfident", "right", "under-\nconfident"])
        bar.ax.tick_params(labelsize=8, length=0)
        bar.outline.set_visible(False)


def draw_example(axes: Axes, example: dict[str, Any], count: int) -> None:
    """Draw each head's probabilities of the classes that are likeliest for one row."""
    probabilities = np.array(example["probabilities"])
    axes.imshow(
        np.ma.masked_equal(probabilities, 0.0), cmap=SHADES, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    for line in range(count):
        for place, value in enumerate(probabilities[line]):
            if value > 0:
                colour = "white" if value > 0.5 else "#222222"
                axes.text(place, line, percent(value), ha="center", va="center", fontsize=8, color=colour)
    names = [shorten(name.replace("_", " "), 22, placeholder="…") for name in example["classes"]]
    turned = max(map(len, names)) > 4
    axes.set_xticks(
        range(len(names)), names, rotation=30 if turned else 0, ha="right" if turned else "center", fontsize=9
    )
    axes.tick_params(axis="x", length=0)
    axes.spines["bottom"].set_visible(False)
    for tick, name in zip(axes.get_xticklabels(), example["classes"], strict=True):
        tick.set_fontweight("bold" if name == example["label"] else "normal")
    if isinstance(example["input"], str):
        row = f"“{shorten(example['input'], 60, placeholder='…')}”"
    else:
        row = "this digit"
        draw_digit(axes, example["input"], count)
    title = f"percent that each head gives the classes of\n{row}, whose label is {example['label']}"
    axes.set_title(title, fontsize=11, loc="left", y=1.0)
    axes.set_xlabel("likeliest classes (bold: its label); blank: probability 0")


def draw_digit(axes: Axes, pixels: list[float], count: int) -> None:
    """Draw a square image above the right corner of a panel of so many lines."""
    side = round(len(pixels) ** 0.5)
    inset = axes.inset_axes((0.7, 1.02, 0.3, DIGIT_INCHES / (LINE_INCHES * count)))
    inset.imshow(np.reshape(pixels, (side, side)), cmap="gray_r", interpolation="nearest")
    inset.set_anchor("SE")
    inset.set_xticks([])
    inset.set_yticks([])


def percent(value: float) -> str:
    """Write a probability in at most three characters."""
    return "<1" if value < 0.005 else f"{100 * value:.0f}"
