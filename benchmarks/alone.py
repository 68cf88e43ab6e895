"""What a contender takes of the system in a process of its own, where nothing has been measured before."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch

from vastmax.study.memory import resident_peak

PRELOADED = ["vastmax", "benchmarks.steps"]
"""What the server that the processes are forked from has imported; it never computes, and so has a clean heap."""


def resident_peak_alone(prepare: Callable[[], Callable[[], object]]) -> int | None:
    """Prepare a contender in a process of its own and return the resident peak of its second call.

    The first loads libraries and compiles, which is not the call's.

    Args:
        prepare: what returns the call; it and the tensors that it holds are pickled.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, pickle.dumps(prepare), torch.get_num_threads()).result()


def _measure(prepare: bytes, threads: int) -> int | None:
    torch.set_num_threads(threads)
    call = pickle.loads(prepare)()
    call()
    return resident_peak(call)
