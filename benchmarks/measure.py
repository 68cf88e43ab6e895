"""How things are measured: in turn, several rounds, medians; and what this machine can do at best."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """What the machine reaches at best, from which floors follow."""

    processor: str
    threads: int
    torch: str
    gflops: float
    row_gb_per_second: float

    def matrix_floor(self, operations: float) -> float:
        """Seconds that so many floating-point operations take at the matrix rate."""
        return operations / (self.gflops * 1e9)

    def row_floor(self, num_bytes: float) -> float:
        """Seconds that reading so many bytes of random class rows takes."""
        return num_bytes / (self.row_gb_per_second * 1e9)


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time the calls A B C A B C ..., after a round that is not counted: seconds of each round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for counted in range(-1, rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if counted >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def paired_ratio(mine: list[float], other: list[float]) -> float:
    """Return the median over the rounds of mine / other."""
    return statistics.median(a / b for a, b in zip(mine, other, strict=True))


def this_machine() -> Machine:
    """Measure the matrix rate on a shape of ours, and the bandwidth of gathering random rows of 1 KB."""
    a, b = torch.randn(1024, 256), torch.randn(256, 16384)
    products = in_turn({"product": lambda: a @ b}, rounds=9)["product"]
    table = torch.randn(1_000_000, 256)
    ids = torch.randint(len(table), (65_536,))
    starts = torch.arange(0, len(ids), 64)
    gathers = in_turn(
        {"gather": lambda: torch.nn.functional.embedding_bag(ids, table, starts, mode="sum")}, rounds=9
    )["gather"]
    return Machine(
        processor=processor_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        gflops=2 * 1024 * 256 * 16384 / min(products) / 1e9,
        row_gb_per_second=len(ids) * 1024 / min(gathers) / 1e9,
    )


def processor_name() -> str:
    """Return the processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
