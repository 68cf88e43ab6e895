"""What importing all parts of vastmax takes beyond `import torch`, each in a fresh interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial

from benchmarks.contest import rows_of
from benchmarks.rows import Floor, Row, Target
from benchmarks.settings import Settings
from benchmarks.timing import Timer, side_by_side

ALL_OF_US = "from vastmax import *"  # `import vastmax` alone imports a part when it is first named


def time_of(statement: str) -> Timer:
    """Time an import as the interpreter that makes it does, without the start of the interpreter."""
    program = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"

    def call() -> float:
        return float(subprocess.check_output([sys.executable, "-c", program], text=True))

    return call


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    contenders = {name: partial(time_of, name) for name in ("import torch", ALL_OF_US)}
    found = side_by_side(contenders, rounds=settings.rounds, seconds=settings.seconds)
    ours, theirs = found[ALL_OF_US], found["import torch"]
    beyond = None
    if ours.median is not None and theirs.median is not None:
        beyond = statistics.median(a - b for a, b in zip(ours.seconds, theirs.seconds, strict=True))

    def targets(name: str) -> list[Target]:
        return [Target("beyond import torch", beyond, 0.3, unit="s")] if name == ALL_OF_US else []

    floor = None if theirs.median is None else Floor(theirs.median, "import torch")
    return rows_of("import", found, floor=floor, peers={"over import torch": "import torch"}, targets=targets)
