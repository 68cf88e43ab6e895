"""Parts of a loop on torch's threads, on others, at the same time, and in a child process."""

import os
import threading

import pytest
import torch

from vastmax.kernels import reference
from vastmax.kernels.numba import gather_dot, threads

ROWS = 1000


@pytest.fixture(params=["team", "pool"])
def several_threads(request, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    if request.param == "pool":
        monkeypatch.setattr(threads, "_openmp", None)
    elif threads._openmp is None:
        pytest.skip("torch came with no OpenMP runtime of GNU's")
    yield
    torch.set_num_threads(before)


def test_every_row_is_in_one_part(several_threads):
    seen, callers = [], set()
    everyone = threading.Barrier(4, timeout=60)

    def kernel(scale, start, stop):
        everyone.wait()  # returns only if the four parts run at a time
        callers.add(threading.get_ident())
        seen.extend(scale * row for row in range(start, stop))

    threads.in_parts(kernel, ROWS, 2)
    assert sorted(seen) == [2 * row for row in range(ROWS)]
    assert len(callers) == 4


@pytest.mark.parametrize(
    ("count", "at_least", "parts"), [(0, 1, 1), (1, 1, 1), (3, 1, 3), (100, 50, 2), (99, 100, 1)]
)
def test_no_more_parts_than_are_worth_it(several_threads, count, at_least, parts):
    bounds = []
    threads.in_parts(lambda start, stop: bounds.append((start, stop)), count, at_least=at_least)
    assert len(bounds) == parts
    assert sum(stop - start for start, stop in bounds) == count


def test_an_error_of_any_part_is_raised(several_threads):
    def kernel(start, stop):
        if stop == ROWS:
            raise RuntimeError("the last part")

    with pytest.raises(RuntimeError, match="the last part"):
        threads.in_parts(kernel, ROWS)


def test_callers_at_the_same_time(several_threads):
    hidden, weight = torch.randn(ROWS, 64), torch.randn(500, 64)
    sets = [torch.randint(500, (ROWS, 30)) for _ in range(8)]
    found = [None] * len(sets)

    def call(i):
        for _ in range(20):
            found[i] = gather_dot(hidden, weight, sets[i])

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(sets))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for ids, logits in zip(sets, found, strict=True):
        torch.testing.assert_close(logits, reference.gather_dot(hidden, weight, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_process_has_threads_of_its_own(several_threads):
    hidden, weight, ids = torch.randn(ROWS, 64), torch.randn(500, 64), torch.randint(500, (ROWS, 30))
    expected = gather_dot(hidden, weight, ids)
    child = os.fork()
    if child == 0:
        os._exit(0 if gather_dot(hidden, weight, ids).numpy().tobytes() == expected.numpy().tobytes() else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
