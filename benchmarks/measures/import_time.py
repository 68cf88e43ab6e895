"""What `import vastmax` takes beyond `import torch`, each in a fresh interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial

from benchmarks.contest import rows_of
from benchmarks.rows import Floor, Row, Target
from benchmarks.settings import Settings
from benchmarks.timing import Timer, side_by_side


def import_of(module: str) -> Timer:
    """Time an import as the interpreter that makes it does, without the start of the interpreter."""
    program = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"

    def call() -> float:
        return float(subprocess.check_output([sys.executable, "-c", program], text=True))

    return call


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    contenders = {f"import {module}": partial(import_of, module) for module in ("torch", "vastmax")}
    found = side_by_side(contenders, rounds=settings.rounds, seconds=settings.seconds)
    ours, theirs = found["import vastmax"], found["import torch"]
    beyond = None
    if ours.median is not None and theirs.median is not None:
        beyond = statistics.median(a - b for a, b in zip(ours.seconds, theirs.seconds, strict=True))

    def targets(name: str) -> list[Target]:
        return [Target("beyond import torch", beyond, 0.3, unit="s")] if name == "import vastmax" else []

    floor = None if theirs.median is None else Floor(theirs.median, "import torch")
    return rows_of("import", found, floor=floor, peers={"over import torch": "import torch"}, targets=targets)
