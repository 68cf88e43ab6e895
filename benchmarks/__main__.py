"""Run the measurements: vastmax and its peers in turn, the floor beside each figure, and what it was to reach."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.measures import MEASURES
from benchmarks.report import bound, time_of, value, write_report
from benchmarks.results import Results, rows_in
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.worker import MACHINE, in_own_process

QUICK, FULL = (3, 4.0), (7, 15.0)
"""Counted rounds at least, and seconds for which short calls go on."""

console = Console()


def parse(given: list[str] | None = None) -> tuple[Settings, list[str], Path, bool]:
    """Return settings, names of measures, the folder and whether to go on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=MEASURES,
        default=list(MEASURES),
        metavar="MEASURE",
        help=f"some of: {', '.join(MEASURES)}",
    )
    parser.add_argument("--full", action="store_true", help="larger sizes, slower peers, more rounds")
    parser.add_argument("--rounds", type=int, help="counted rounds at least: 3, or 7 with --full")
    parser.add_argument("--seconds", type=float, help="go on with short calls for so long: 4, or 15 with --full")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of every library")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on rows and classes, for a trial run")
    parser.add_argument("--lm", metavar="RUN", help="run of `vastmax train lm` for filtered_loss")
    parser.add_argument("--out", type=Path, help="folder of results: benchmarks/results, or runs/ for a trial")
    parser.add_argument("--resume", action="store_true", help="leave out what the folder has, so measured")
    asked = parser.parse_args(given)
    for name in ("rounds", "threads", "scale", "seconds"):
        if getattr(asked, name) is not None and getattr(asked, name) <= 0:
            parser.error(f"--{name}: expected a number greater than 0, got {getattr(asked, name)}")
    rounds, seconds = FULL if asked.full else QUICK
    settings = Settings(
        threads=asked.threads,
        rounds=asked.rounds or rounds,
        seconds=asked.seconds or seconds,
        full=asked.full,
        scale=asked.scale,
        language_model=asked.lm,
    )
    out = asked.out or (Path(__file__).parent / "results" if asked.scale == 1 else Path("runs/benchmarks/trial"))
    return settings, asked.only, out, asked.resume


def main() -> None:
    """Measure, print, and write the report after each measure."""
    settings, names, folder, resume = parse()
    results = Results(folder)
    try:
        with console.status("the machine"):
            machine = in_own_process(MACHINE, settings)
        del machine["seconds"]
        for number, name in enumerate(names):
            title = f"{number + 1}/{len(names)} {name}"
            if resume and results.done(name, settings, machine):
                console.print(f"[bold]{title}[/]: kept")
                continue
            with console.status(title):
                found = in_own_process(name, settings)
            results.keep(name, settings, machine, found)
            write_report(results)
            console.print(f"[bold]{title}[/]: {found['seconds']:.0f} s")
            print_rows(found)
    except KeyboardInterrupt:
        console.print("stopped; the same command with --resume goes on after the last measure that is done")
        sys.exit(130)
    write_report(results)
    console.print(f"report: {folder / 'bench.md'}", soft_wrap=True)


def print_rows(found: dict[str, Any]) -> None:
    """Print the rows of a measure, and what they were to reach."""
    for row in rows_in(found):
        console.print(line_of(row), highlight=False, soft_wrap=True, markup=False)
        for target in row.targets:
            met = "met" if target.met else "MISSED"
            console.print(f"      {met}: {target.what} {value(target)}, to be {bound(target)}", markup=False)


def line_of(row: Row) -> str:
    """Return a row in one line."""
    size = "" if row.classes is None else f" V={row.classes:,}"
    over = "" if row.over_floor is None else f", {row.over_floor:.3g} x the floor"
    return f"  {row.measure}{size}: {row.implementation}: {row.note or time_of(row) + over}"


if __name__ == "__main__":
    main()
