"""A comparison of classifiers as a table for the terminal, a verdict, and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table

from vastmax.study.classify_picture import draw
from vastmax.study.page import Page, table_of, write_page
from vastmax.study.repeats import counted, spread
from vastmax.tasks.classify.heads import KINDS
from vastmax.tasks.classify.scores import BINS, THIRDS

NARROW = (*(f"{third} F1" for third in THIRDS), "zero")
"""Columns that the terminal shows the mean of alone."""

UNEQUAL = 2
"""Largest class over smallest from which on the thirds of the classes are told apart."""

READING = {
    "head": "The output layer; its families are told below.",
    "accuracy": "Percent of the test rows whose most probable class is theirs. Here and below: mean ± standard "
    "deviation over the seeds.",
    "macro-F1": "F1, the harmonic mean of precision and recall, in percent: of each class by itself, then the mean "
    "over the classes that have a test row, so that a rare class weighs as much as a frequent one.",
    "head F1, medium F1, tail F1": "Macro-F1 of the third of the classes with the most training rows, the next "
    "third, and the third with the fewest.",
    "nll": "Mean of -log p(label) over test rows, in nats. It is inf where one label got probability 0, as sparse "
    "heads and the top k give.",
    "zero": "Percent of the test rows whose label got probability 0.",
    "ECE": "Expected calibration error in percent: by how much confidence, the probability of the predicted "
    f"class, is off from how often it is right, over {BINS} bins.",
    "seconds": "Training time of one seed.",
    "the picture": "Every line of it is a head. Left: macro-F1, a dot for each seed, a stroke at their mean. "
    "Middle: predictions by their confidence; a larger dot holds more rows, blue is right more often than it is "
    "confident, red less often. Right: what each head makes of the test row whose second class is likeliest, on "
    "average over the heads; a blank is probability 0.",
}


def columns(results: dict[str, Any]) -> list[str]:
    """Return the headings of the table."""
    thirds = [f"{third} F1" for third in THIRDS] if unequal(results) else []
    return ["head", "accuracy", "macro-F1", *thirds, "nll", "zero", "ECE", "seconds"]


def rows(results: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the table, one row per head."""
    thirds = THIRDS if unequal(results) else ()
    table = []
    for head in results["heads"]:
        seeds = head["seeds"]

        def over(name: str, scale: float = 1.0, digits: int = 1, seeds: Any = seeds) -> str:
            return spread([seed["test"][name] for seed in seeds], scale, digits)

        table.append(
            [
                head["head"],
                over("accuracy", 100),
                over("macro_f1", 100),
                *(over(third, 100) for third in thirds),
                over("nll", digits=2),
                over("zero_share", 100),
                over("ece", 100),
                f"{mean(seed['seconds'] for seed in seeds):.1f}",
            ]
        )
    return table


def unequal(results: dict[str, Any]) -> bool:
    """Tell whether classes differ enough in training rows for their thirds to be told apart."""
    seeds = results["heads"][0]["seeds"]
    return all(seed["largest_class"] >= UNEQUAL * seed["smallest_class"] for seed in seeds)


def terminal_table(results: dict[str, Any]) -> Table:
    """Return the comparison as a table for the terminal, which is to fit eighty columns.

    Thirds and zeros come without spread, and beside thirds there is no place for zeros and seconds.
    """
    names = columns(results)
    left_out = ("zero", "seconds") if unequal(results) else ()
    cells = [
        [
            cell.split("±")[0] if name in NARROW else cell
            for name, cell in zip(names, row, strict=True)
            if name not in left_out
        ]
        for row in rows(results)
    ]
    return table_of(heading(results), [name for name in names if name not in left_out], cells)


def heading(results: dict[str, Any]) -> str:
    """Return the title of the comparison."""
    options = results["options"]
    tail = f", long tail 1:{options['long_tail']:g}" if options["long_tail"] > 1 else ""
    return (
        f"{results['data']['name']}, {results['data']['num_classes']:,} classes{tail}, "
        f"{counted(options['epochs'], 'epoch')}, {counted(options['seeds'], 'seed')}"
    )


def verdict(results: dict[str, Any]) -> str:
    """Say in a sentence what the table shows."""
    heads = results["heads"]
    best = max(heads, key=lambda head: mean(of(head, "macro_f1")))
    calibrated = min(heads, key=lambda head: mean(of(head, "ece")))
    said = f"Highest macro-F1: {best['head']} ({spread(of(best, 'macro_f1'), 100)}%)"
    exact = next((head for head in heads if head["head"] == "exact"), None)
    if exact is not None and best is not exact:
        gains = [one - other for one, other in zip(of(best, "macro_f1"), of(exact, "macro_f1"), strict=True)]
        won = sum(gain > 0 for gain in gains)
        said += (
            f", {100 * mean(gains):+.1f} points beside exact, ahead of it in {won} of {counted(len(gains), 'seed')}"
        )
    return f"{said}. Best calibrated: {calibrated['head']} (ECE {spread(of(calibrated, 'ece'), 100)}%)."


def of(head: dict[str, Any], name: str) -> list[float]:
    """Return a test score of every seed."""
    return [seed["test"][name] for seed in head["seeds"]]


def reading(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return what the columns that are there mean."""
    return [(term, text) for term, text in READING.items() if term.split(",")[0] in (*names, "the picture")]


def write_report(results: dict[str, Any], folder: Path) -> Path:
    """Write `picture.png` and `report.html` into a comparison's folder; return the report's path."""
    names = columns(results)
    sizes = " / ".join(f"{results[name]:,}" for name in ("train_rows", "valid_rows", "test_rows"))
    notes = "".join(f" {note}." for note in results["data"]["notes"])
    page = Page(
        heading(results),
        verdict(results),
        names,
        rows(results),
        "Every head: how good, how sure, and what it makes of one hard row",
        reading(names),
        [
            (head["head"], f"{KINDS[head['head']].family}: {KINDS[head['head']].meaning}")
            for head in results["heads"]
        ],
        f"{results['data']['source']}: {sizes} rows to train, validate and test under the first seed.{notes}",
    )
    return write_page(page, results, draw(results, heading(results)), folder)
