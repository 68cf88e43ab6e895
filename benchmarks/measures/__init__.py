"""The measures: a module each, whose `run(settings)` returns its rows. Each runs in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from benchmarks.rows import Row
from benchmarks.settings import Settings

MEASURES = (
    "import_time",
    "sampler",
    "classes",
    "sampled_step",
    "per_row_negatives",
    "huffman",
    "adaptive",
    "entmax",
    "exact_loss",
    "filtered_loss",
    "info_nce",
    "gpu",
)


def measure(name: str) -> Callable[[Settings], list[Row]]:
    """Return what runs a measure."""
    run: Callable[[Settings], list[Row]] = import_module(f"benchmarks.measures.{name}").run
    return run
