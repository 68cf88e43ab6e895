"""A comparison of contrastive losses as a table for the terminal, a verdict, a picture, and a page."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.table import Table

from vastmax.study.contrast import PIXELS
from vastmax.study.page import Page, table_of, write_page
from vastmax.study.repeats import counted, spread
from vastmax.tasks.contrast.losses import KINDS
from vastmax.tasks.contrast.scores import NEIGHBOURS

COLUMNS = ("loss", "recall@1", "kNN accuracy", "align", "uniform", "info nats", "T", "seconds")
UNTRAINED = "No loss: the images as they are, taken for their own embeddings. What training has to beat."
READING = (
    (
        "recall@1",
        "Percent of the test images whose view is nearest, among the other views of all test images, to its own. "
        "Here and below: mean ± standard deviation over the seeds.",
    ),
    (
        "kNN accuracy",
        f"Percent of the test images that get their digit by the majority of the {NEIGHBOURS} nearest training "
        "images. Only the supervised loss has seen digits' names.",
    ),
    ("align", "Mean squared distance between two views of an image, on the unit sphere: 0 is best."),
    (
        "uniform",
        "Log of the mean of exp(-2 squared distance) over pairs of images: the less, the more evenly they fill the "
        "sphere.",
    ),
    (
        "info nats",
        "Lower bound on the mutual information of the two views, log N - loss, at the loss's own temperature; it "
        "cannot exceed log N, and is that of a softmax over the test images whatever the loss trained with.",
    ),
    ("T", "That of the cosines at the end; clip and siglip learn theirs."),
    ("seconds", "Training time of one seed."),
    (
        "the picture",
        "The first two principal components of the test images' embeddings, under the first seed, a colour for "
        "each digit, with the share of the variance that they hold.",
    ),
)


def rows(results: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the table, one row per loss."""
    table = []
    for loss in results["losses"]:

        def over(name: str, scale: float = 1.0, digits: int = 1, seeds: Any = loss["seeds"]) -> str:
            return spread([seed[name] for seed in seeds], scale, digits)

        table.append(
            [
                loss["loss"],
                over("recall_at_1", 100),
                over("neighbours", 100),
                over("alignment", digits=2),
                over("uniformity", digits=2),
                over("information", digits=2),
                f"{mean(seed['temperature'] for seed in loss['seeds']):.3f}",
                f"{mean(seed['seconds'] for seed in loss['seeds']):.1f}",
            ]
        )
    return table


def terminal_table(results: dict[str, Any]) -> Table:
    """Return the comparison as a table for the terminal, with the spread of the first scores, to fit its width."""
    cells = [[cell if place < 3 else cell.split("±")[0] for place, cell in enumerate(row)] for row in rows(results)]
    return table_of(heading(results), COLUMNS, cells)


def heading(results: dict[str, Any]) -> str:
    """Return the title of the comparison."""
    options = results["options"]
    return (
        f"Two views of {results['data']['name']}, {counted(options['epochs'], 'epoch')}, "
        f"{counted(options['seeds'], 'seed')}"
    )


def verdict(results: dict[str, Any]) -> str:
    """Say in a sentence what the table shows."""
    said = []
    for what, name in (("recall@1", "recall_at_1"), ("kNN accuracy", "neighbours")):
        best = max(trained(results), key=lambda loss, name=name: mean(of(loss, name)))  # type: ignore[misc]
        pixels = spread(of(results["losses"][0], name), 100)
        said.append(f"Highest {what}: {best['loss']} ({spread(of(best, name), 100)}%; pixels {pixels}%).")
    most = math.log(results["test_rows"])
    return (
        f"{' '.join(said)} No bound on the information can exceed log {results['test_rows']:,} = {most:.2f} nats."
    )


def trained(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of what was trained."""
    return [loss for loss in results["losses"] if loss["loss"] != PIXELS]


def of(loss: dict[str, Any], name: str) -> list[float]:
    """Return a score of every seed."""
    return [seed[name] for seed in loss["seeds"]]


def draw(results: dict[str, Any]) -> Figure:
    """Draw the embeddings of each loss in two dimensions, a panel each."""
    from sklearn.decomposition import PCA  # type: ignore[import-untyped]

    across = min(4, len(results["losses"]))
    down = -(-len(results["losses"]) // across)
    figure = Figure(figsize=(3.5 * across, 3.7 * down + 0.8), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    label = np.array(results["label"])
    colours = [colormaps["tab10"](index) for index in range(10)]
    for axes, loss, embedded in zip(panels, results["losses"], results["embeddings"], strict=False):
        pca = PCA(2, random_state=0)
        place = pca.fit_transform(np.array(embedded))
        axes.scatter(*place.T, s=11, c=[colours[digit] for digit in label], alpha=0.75, linewidths=0)
        held = 100 * pca.explained_variance_ratio_.sum()
        first = loss["seeds"][0]
        axes.set_title(loss["loss"], fontsize=12, fontweight="bold")
        axes.set_xlabel(
            f"recall@1 {100 * first['recall_at_1']:.1f}%, kNN {100 * first['neighbours']:.1f}%\n"
            f"{held:.0f}% of the variance is in this plane",
            fontsize=9,
        )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
    for axes in list(figure.axes)[len(results["losses"]) :]:
        axes.set_visible(False)
    marks = [Line2D([], [], marker="o", linestyle="", color=colours[digit]) for digit in range(10)]
    figure.legend(marks, [str(digit) for digit in range(10)], loc="outside lower center", ncols=10, frameon=False)
    figure.suptitle(heading(results), fontsize=13, fontweight="bold")
    return figure


def write_report(results: dict[str, Any], folder: Path) -> Path:
    """Write `picture.png` and `report.html` into a comparison's folder; return the report's path."""
    sizes = f"{results['train_rows']:,} images to train on, {results['test_rows']:,} to test"
    page = Page(
        heading(results),
        verdict(results),
        COLUMNS,
        rows(results),
        "Embeddings of the test images, in two dimensions",
        READING,
        [(PIXELS, UNTRAINED), *((loss["loss"], KINDS[loss["loss"]].meaning) for loss in trained(results))],
        f"{results['data']['source']}: {sizes}.",
    )
    return write_page(page, results, draw(results), folder)
