"""The peak memory of a call, whatever was there before it."""

import gc
import sys

import pytest
import torch

from vastmax.study.memory import peak_memory, resident_peak

CPU = torch.device("cpu")


@pytest.fixture
def eager_collector():
    """A collector that runs at nearly every new object."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*before)


def test_the_worst_moment_counts():
    def call():
        first = torch.empty(1000, dtype=torch.float64)
        del first
        return torch.empty(500, dtype=torch.float64), torch.empty(700, dtype=torch.float64)

    assert peak_memory(call, CPU) == 9600


def test_garbage_of_before_is_not_given_back_within(eager_collector):
    """A tensor in a circle of references, which only the collector frees."""
    gc.disable()
    circle = [torch.empty(1000)]
    circle.append(circle)
    del circle
    gc.enable()

    def call():
        made = [[i] for i in range(1000)]
        return made, torch.empty(1000)

    assert peak_memory(call, CPU) == 4000
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="stop"):
            peak_memory(lambda: (_ for _ in ()).throw(RuntimeError("stop")), CPU)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="a peak that can be set back is Linux's")
def test_the_process_grows_by_what_is_written_at_the_worst_moment_and_not_by_what_was_before():
    before = torch.ones(30_000_000)
    del before

    def call():
        for size in (10_000_000, 20_000_000):
            torch.ones(size)

    assert 79_000_000 <= resident_peak(call) < 84_000_000  # the kernel counts in batches
