"""What the figures hold for: the machine, its software, and what it reaches at best."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.floors import Products, copy_elements, row_rates, row_reads
from benchmarks.settings import Settings
from benchmarks.timing import side_by_side

PACKAGES = (
    "vastmax",
    "torch",
    "numpy",
    "numba",
    "triton",
    "entmax",
    "tensorflow-cpu",
    "keras",
    "cut-cross-entropy",
    "liger-kernel",
)
SHAPES = ((1024, 1024, 256), (1024, 1024, 128), (4096, 4096, 256), (1024, 16_384, 256))
"""Rows, classes and features of the products whose rate is measured."""

TABLE_ROWS = 1_000_000
COPIED = 1 << 26


@dataclass(frozen=True)
class Machine:
    """The machine.

    Attributes:
        processor: its name.
        cores: that this process may use.
        threads: that every library uses.
        memory_bytes: RAM.
        gpu: its name.
        packages: versions by name; None of those that are not installed.
        gflops: measured rate of the three products of N x V x d, by shape, in float32.
        bfloat16_gflops: the same in bf16.
        row_gigabytes: bandwidth of random rows of 1 KB from a table of 1 GB, by kernel.
        copy_gigabytes: bandwidth of a copy, reads and writes counted.
    """

    processor: str
    cores: int
    threads: int
    memory_bytes: int
    gpu: str | None
    python: str
    packages: dict[str, str | None]
    gflops: dict[str, float]
    bfloat16_gflops: dict[str, float]
    row_gigabytes: dict[str, float]
    copy_gigabytes: float

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)


def measure_machine(settings: Settings) -> Machine:
    """Describe this machine and measure what it reaches."""
    return Machine(
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_bytes=memory_bytes(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        python=platform.python_version(),
        packages={name: version_of(name) for name in PACKAGES},
        gflops=matrix_rates(settings, torch.float32),
        bfloat16_gflops=matrix_rates(settings, torch.bfloat16),
        row_gigabytes=row_bandwidths(settings),
        copy_gigabytes=copy_bandwidth(settings),
    )


def matrix_rates(settings: Settings, dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of the three products at several shapes of ours."""
    products = {
        f"{rows} x {classes} x {features}": Products(rows, classes, features, block=4096, dtype=dtype, fastest=True)
        for rows, classes, features in (
            (settings.scaled(rows), settings.scaled(classes), features) for rows, classes, features in SHAPES
        )
    }
    found = side_by_side({name: each.prepare for name, each in products.items()}, rounds=settings.rounds, seconds=2)
    rates = {}
    for name, product in products.items():
        floor = product.floor(found[name])
        if floor is not None:
            rates[name] = 3 * 2 * product.rows * product.classes * product.features / floor.seconds / 1e9
    return rates


def row_bandwidths(settings: Settings) -> dict[str, float]:
    """GB/s of random rows of 1 KB, by kernel."""
    found = side_by_side(
        row_reads(torch.randn(settings.scaled(TABLE_ROWS), 256)), rounds=settings.rounds, seconds=2
    )
    return {kernel: rate / 1e9 for kernel, rate in row_rates(found, row_bytes=1024).items()}


def copy_bandwidth(settings: Settings) -> float:
    """GB/s of a copy."""
    elements = settings.scaled(COPIED)
    [copied] = side_by_side({"copy": copy_elements(elements)}, rounds=settings.rounds, seconds=1).values()
    assert copied.median is not None
    return 2 * 4 * elements / copied.median / 1e9


def version_of(package: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def memory_bytes() -> int:
    """Return the machine's RAM."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def processor_name() -> str:
    """Return the processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
