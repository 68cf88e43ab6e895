"""The measurements as one JSON file, a page with tables, and plots."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from benchmarks.measures import MEASURES
from benchmarks.plots import draw
from benchmarks.results import SAME_MACHINE, Results, rows_in
from benchmarks.rows import Row, Target
from vastmax.tasks.files import whole, write_json


def write_report(results: Results) -> None:
    """Write `bench.json`, `bench.md` and the plots over all measures that there are."""
    found = results.all()
    rows = {measure: rows_in(content) for measure, content in found.items()}
    write_json(results.folder / "bench.json", {"measures": found})
    write_text(results.folder / "bench.md", page(found, rows))
    draw(list(itertools.chain.from_iterable(rows.values())), results.folder)


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def page(found: dict[str, dict[str, Any]], rows: dict[str, list[Row]]) -> str:
    """Return the report in Markdown: a part for each machine and setting, its targets first."""
    parts = ["# Measurements\n\nMedians of calls in turn; the floor beside each is what the mathematics allow.\n"]
    surroundings: dict[str, list[str]] = {}
    for measure, content in found.items():
        surroundings.setdefault(surrounding(content), []).append(measure)
    for measures in surroundings.values():
        there = list(itertools.chain.from_iterable(rows[measure] for measure in measures))
        parts.append(describe(found[measures[-1]], measures))
        if any(row.targets for row in there):
            parts.append("### Targets\n\n" + target_table(there))
        parts += [f"### {title}\n\n" + table(list(group)) for title, group in by_measure(there)]
    return "\n".join(parts)


def surrounding(content: dict[str, Any]) -> str:
    """Return what two measures must share to stand under one heading; the measured rates drift from run to run."""
    machine, settings = content["machine"], content["settings"]
    same = [machine[name] for name in SAME_MACHINE] + [settings[name] for name in ("full", "scale")]
    return json.dumps(same, sort_keys=True)


def describe(content: dict[str, Any], measures: list[str]) -> str:
    """Return what the figures of some measures hold for, and how they were made."""
    machine, settings = content["machine"], content["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    gpu = f"; {machine['gpu']}" if machine["gpu"] else ""
    scaled = "" if settings["scale"] == 1 else f" **A trial run: sizes times {settings['scale']:g}.**"
    only = "" if len(measures) == len(MEASURES) else f" --only {' '.join(measures)}"
    options = "".join(f" --{name} {settings[name]:g}" for name in ("threads", "rounds", "seconds"))
    options += "" if settings["scale"] == 1 else f" --scale {settings['scale']:g}"
    command = f"python -m benchmarks{' --full' if settings['full'] else ''}{options}{only}"
    rates = ", ".join(f"{shape}: {rate:,.0f}" for shape, rate in machine["gflops"].items())
    half = ", ".join(f"{shape}: {rate:,.0f}" for shape, rate in machine["bfloat16_gflops"].items())
    reads = ", ".join(f"{kernel} {rate:.1f}" for kernel, rate in machine["row_gigabytes"].items())
    return (
        f"## {machine['processor']}, {settings['threads']} of {machine['cores']} cores{gpu}\n\n"
        f"{machine['memory_bytes'] / 2**30:,.0f} GiB of memory; Python {machine['python']}, {versions}.{scaled}\n\n"
        f"`{command}`\n\n"
        f"- GFLOP/s of the three products of N x V x d, float32: {rates}; bf16: {half}\n"
        f"- GB/s of random rows of 1 KB: {reads}; of a copy: {machine['copy_gigabytes']:.1f}\n"
    )


def by_measure(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Group rows by what they measure, in the order of their first."""
    titles = dict.fromkeys(row.measure for row in rows)
    return [(title, [row for row in rows if row.measure == title]) for title in titles]


def target_table(rows: list[Row]) -> str:
    """Return the targets with the figures that are held to them."""
    lines = ["| measure | implementation | time | floor | target | measured | met |", "|" + "---|" * 7]
    lines += [
        f"| {row.measure} | {row.implementation}{classes(row)} | {time_of(row)} | {floor_of(row)} "
        f"| {target.what} {bound(target)} | {value(target)} | {'yes' if target.met else '**no**'} |"
        for row in rows
        for target in row.targets
    ]
    return "\n".join(lines) + "\n"


def table(rows: list[Row]) -> str:
    """Return the rows of one measure."""
    lines = [
        "| implementation | time | least to most (rounds) | floor | times the floor | tensors | resident "
        "| ratios |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        spread = ""
        if row.seconds is not None:
            spread = f"{duration(row.seconds.least)} to {duration(row.seconds.most)} ({row.seconds.rounds})"
        over = "" if row.over_floor is None else f"{row.over_floor:.3g}"
        memory = " | ".join(megabytes(peak) for peak in (row.peak_bytes, row.resident_bytes))
        ratios = ", ".join(f"{name}: {ratio:.3g}" for name, ratio in row.ratios.items())
        lines.append(
            f"| {row.implementation}{classes(row)} | {time_of(row)} | {spread} | {floor_of(row)} | {over} "
            f"| {memory} | {row.note.replace('|', '/') or ratios} |"
        )
    floors = dict.fromkeys(row.floor.kind for row in rows if row.floor is not None)
    kinds = "".join(f"\nFloor: {kind}.\n" for kind in floors)
    return "\n".join(lines) + "\n" + kinds


def megabytes(peak: int | None) -> str:
    """Return a peak of memory, if there is one."""
    return "" if peak is None else f"{peak / 1e6:,.1f} MB"


def classes(row: Row) -> str:
    """Return the number of classes, where a measure has several."""
    return "" if row.classes is None else f", V = {row.classes:,}"


def time_of(row: Row) -> str:
    """Return the median time."""
    if row.seconds is None:
        return next((word for word in ("not installed", "skipped") if row.note.startswith(word)), "failed")
    return duration(row.seconds.median)


def floor_of(row: Row) -> str:
    """Return the floor's time."""
    return "" if row.floor is None else duration(row.floor.seconds)


def duration(seconds: float) -> str:
    """Return seconds in a unit that suits them."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def bound(target: Target) -> str:
    """Return a target's bound."""
    return f"{'<=' if target.at_most else '>='} {target.bound:g}{unit(target)}"


def value(target: Target) -> str:
    """Return the figure that a target is about."""
    return "no figure" if target.value is None else f"{target.value:.3g}{unit(target)}"


def unit(target: Target) -> str:
    """Return a target's unit after a blank."""
    return f" {target.unit}" if target.unit else ""
