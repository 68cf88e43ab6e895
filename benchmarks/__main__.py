"""Run the measurements: `python -m benchmarks [--rounds N] [--out FOLDER]`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import cross_entropy, sampled_step
from benchmarks.measure import this_machine


def table(rows: list[dict[str, Any]]) -> str:
    """Write the rows as a Markdown table."""
    lines = ["| measure | implementation | classes | time | floor | peak memory | ratios |", "|" + "---|" * 7]
    for row in rows:
        ratios = ", ".join(
            f"{name.replace('_', ' ')} {row[name]:.3g}"
            for name in ("time_over_peer", "memory_over_peer", "time_over_smallest", "over_sampled")
            if name in row
        )
        memory = f"{row['peak_bytes'] / 1e6:,.0f} MB" if "peak_bytes" in row else ""
        classes = f"{row['classes']:,}" if "classes" in row else ""
        lines.append(
            f"| {row['measure']} | {row['implementation']} | {classes} | {1000 * row['seconds']:,.1f} ms "
            f"| {1000 * row['floor_seconds']:,.1f} ms | {memory} | {ratios} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the step's time against the number of classes."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["implementation"] for row in rows if "classes" in row):
        points = [row for row in rows if row["implementation"] == name and "classes" in row]
        axes.plot([p["classes"] for p in points], [1000 * p["seconds"] for p in points], marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("classes")
    axes.set_ylabel("ms per step, optimizer included")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, print, and write JSON, table and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    machine = this_machine()
    print(asdict(machine), flush=True)
    rows: list[dict[str, Any]] = []
    for part in (sampled_step, cross_entropy):
        rows += part.run(machine, rounds=arguments.rounds)
        print(table(rows), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = {"machine": asdict(machine), "rows": rows}
    (arguments.out / "bench.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (arguments.out / "bench.md").write_text(table(rows), encoding="utf-8")
    draw(rows, arguments.out / "step_time.png")


if __name__ == "__main__":
    main()
