"""How things are timed: in turn, A B C B A C, several rounds of each, after one that is not counted."""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from benchmarks.alone import resident_peak_alone
from benchmarks.rows import without_folders
from vastmax.study.memory import peak_memory

MOST_ROUNDS = 201


class Wall:
    """Times a call in this process by the wall clock; one on a GPU from idle to idle."""

    def __init__(self, call: Callable[[], object], device: torch.device | str = "cpu") -> None:
        self.call = call
        self.device = torch.device(device)

    def __call__(self) -> float:
        """Make the call and return its seconds."""
        self.wait()
        start = time.perf_counter()
        self.call()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Wait until a GPU has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Repeated:
    """Times a short call beside long ones: the median of several in a row, as in a loop of nothing else."""

    def __init__(self, timer: Timer, times: int) -> None:
        self.timer = timer
        self.times = times

    def __call__(self) -> float:
        """Make the calls and return the median of their seconds."""
        return statistics.median(self.timer() for _ in range(self.times))


Timer = Callable[[], float]
"""Does the thing once and returns the seconds it took."""


@dataclass
class Measured:
    """What came of one contender: seconds of each counted round, or why there are none."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    resident_bytes: int | None = None
    problem: str = ""

    @property
    def median(self) -> float | None:
        """The median of its rounds, None without any."""
        return statistics.median(self.seconds) if self.seconds and not self.problem else None

    def over(self, other: Measured) -> float | None:
        """Return the median over the rounds of mine / other, None where one has no figure."""
        if self.median is None or other.median is None:
            return None
        return statistics.median(mine / its for mine, its in zip(self.seconds, other.seconds, strict=True))


def side_by_side(
    contenders: Mapping[str, Callable[[], Timer]],
    *,
    floors: Mapping[str, Callable[[], Timer]] | None = None,
    rounds: int,
    seconds: float = 0.0,
    memory: bool = False,
    warm: bool = False,
) -> dict[str, Measured]:
    """Prepare every contender, then time them in turn; one that fails has its `problem` and no further rounds.

    Args:
        contenders: by name, what prepares a contender and returns its timer.
        floors: bare products, reads and copies that are timed in turn with them, and no more.
        rounds: counted rounds at least.
        seconds: go on until so much time has gone by since the first counted round.
        memory: take the peak memory of the contenders' calls: of tensors in this process, in a round before the
            counted ones, and resident in a process of its own each, for which what prepares one is pickled.
        warm: the code has run before, on a smaller problem: the first round counts, with or without memory. Only
            for calls of many seconds, beside which what the memory's profiler takes is nothing.
    """
    every = {**contenders, **(floors or {})}
    found = {name: Measured() for name in every}
    timers: dict[str, Timer] = {}
    for name, prepare in every.items():
        with problem_of(found[name]):
            timers[name] = prepare()
            if memory and name in contenders and of_this_process(timers[name]):
                found[name].resident_bytes = resident_peak_alone(prepare)
    gc.collect()
    start = time.perf_counter()
    for number in itertools.count(1 if warm else 0):
        if number == 1 and not warm:
            start = time.perf_counter()
        if number > rounds and (time.perf_counter() - start > seconds or number > MOST_ROUNDS):
            break
        profiled = contenders.keys() if memory and number == int(warm) else ()
        # In an order of each round's own: what comes before leaves its things in the caches, and takes memory away.
        order = random.Random(number).sample(list(timers), len(timers))
        for name, timer in ((name, timers[name]) for name in order):
            if found[name].problem:
                continue
            with problem_of(found[name]), no_collection():
                spent = with_memory(timer, found[name]) if name in profiled else timer()
                if number > 0:
                    found[name].seconds.append(spent)
    return found


def of_this_process(timer: Timer) -> bool:
    """Whether what a timer times takes memory of the system for a process like this one."""
    return isinstance(timer, Wall) and timer.device.type == "cpu"


def with_memory(timer: Timer, measured: Measured) -> float:
    """Run a timer once under the memory's profiler; one of another process as it is."""
    if not isinstance(timer, Wall):
        return timer()
    spent = 0.0

    def call() -> None:
        nonlocal spent
        spent = timer()

    measured.peak_bytes = peak_memory(call, timer.device)
    return spent


@contextmanager
def problem_of(measured: Measured) -> Iterator[None]:
    """Keep what goes wrong with one contender from the others: it becomes a line of the table."""
    try:
        yield
    except ImportError as error:
        measured.problem = f"not installed: {error.name or error}"
    except Exception as error:
        measured.problem = reason(error)


def reason(error: BaseException) -> str:
    """Return the first line of an error."""
    message = str(error).strip()
    return without_folders(
        f"{type(error).__name__}: {message.splitlines()[0]}" if message else type(error).__name__
    )


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of a timed call, as `timeit` does."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
