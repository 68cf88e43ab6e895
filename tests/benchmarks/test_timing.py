"""Timing: in turn, one's failure is not the others', and peaks are those of the call."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.timing import Measured, Repeated, Wall, side_by_side


def logging_contender(log, name, seconds=1.0):
    def timer():
        log.append(name)
        return seconds

    return lambda: timer


@pytest.mark.parametrize("warm", [False, True])
def test_contenders_go_in_turn_and_the_first_round_counts_only_if_the_code_is_warm(warm):
    log = []
    found = side_by_side({name: logging_contender(log, name) for name in "ABC"}, rounds=3, warm=warm)
    rounds = ["".join(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(rounds) == (3 if warm else 4)
    assert all(sorted(each) == ["A", "B", "C"] for each in rounds)
    assert [measured.seconds for measured in found.values()] == [[1.0] * 3] * 3


def test_no_contender_always_comes_after_the_same():
    log = []
    side_by_side({name: logging_contender(log, name) for name in "ABC"}, rounds=20)
    pairs = {"".join(log[i : i + 2]) for i in range(len(log) - 1)}
    assert pairs >= {"AB", "BA", "AC", "CA", "BC", "CB"}


def test_rounds_go_on_until_the_time_is_up(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: float(next(clock)))
    log = []
    found = side_by_side({"A": logging_contender(log, "A")}, rounds=2, seconds=4.5)
    assert len(found["A"].seconds) > 2
    assert len(log) == len(found["A"].seconds) + 1


def test_what_fails_says_why_and_the_others_go_on():
    log = []

    def at_the_third_call():
        log.append("late")
        if log.count("late") == 3:
            raise ValueError(f"expected no such thing in {Path.cwd()}/file\nand more")
        return 1.0

    def missing():
        import no_such_module_of_a_peer  # noqa: F401

    def refused():
        raise TypeError("got an unexpected keyword argument 'filter_eps'")

    found = side_by_side(
        {
            "good": logging_contender(log, "good"),
            "late": lambda: at_the_third_call,
            "missing": missing,
            "refused": refused,
        },
        rounds=4,
    )
    assert log.count("late") == 3
    assert found["good"].seconds == [1.0] * 4
    assert found["late"].problem == "ValueError: expected no such thing in ./file"
    assert found["missing"].problem == "not installed: no_such_module_of_a_peer"
    assert found["refused"].problem == "TypeError: got an unexpected keyword argument 'filter_eps'"
    assert [found[name].median for name in ("late", "missing", "refused")] == [None] * 3


def test_an_interrupt_is_no_failure_of_a_contender():
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side({"A": lambda: stopped}, rounds=1)


def summed_zeros(size):
    return torch.zeros(size).sum()


@pytest.mark.parametrize("warm", [False, True])
def test_the_peaks_are_those_of_the_call(warm):
    small, large = (partial(Wall, partial(summed_zeros, size)) for size in (1000, 10_000_000))
    floors = {"floor": lambda: Wall(lambda: summed_zeros(10))}
    found = side_by_side({"small": small, "large": large}, floors=floors, rounds=1, memory=True, warm=warm)
    assert 4000 <= found["small"].peak_bytes < 100_000
    assert 40_000_000 <= found["large"].peak_bytes < 40_100_000
    if sys.platform == "linux":
        assert 0 <= found["small"].resident_bytes < 4_000_000
        assert 39_000_000 <= found["large"].resident_bytes < 44_000_000  # the kernel counts in batches
    assert found["floor"].peak_bytes is found["floor"].resident_bytes is None
    assert len(found["floor"].seconds) == 1
    bare = side_by_side({"small": small}, rounds=1)["small"]
    assert bare.peak_bytes is bare.resident_bytes is None


def test_short_calls_beside_long_ones_are_medians_of_several():
    seconds = iter([5.0, 1.0, 3.0])
    assert Repeated(lambda: next(seconds), 3)() == 3.0


def test_no_rounds_no_median():
    assert Measured().median is None
