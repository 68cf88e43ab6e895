"""A loop over rows cut into one part per thread.

Numba's own parallel loops end a process that forked, or may not be entered by two threads at a time. Kernels let
go of the interpreter's lock, so plain Python threads do as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch

_pools: dict[int, ThreadPoolExecutor] = {}

# The threads of a pool do not exist in a child process, which makes its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)


def in_parts(kernel: Callable[..., Any], count: int, *arguments: Any, at_least: int = 1) -> None:
    """Call `kernel(*arguments, start, stop)` for parts of `range(count)`, as many at a time as torch has threads.

    Args:
        kernel: works on the rows from `start` to `stop` alone.
        count: rows.
        *arguments: of the kernel, shared by the parts.
        at_least: rows that are worth a thread.
    """
    parts = max(1, min(torch.get_num_threads(), count // max(at_least, 1)))
    bounds = [count * part // parts for part in range(parts + 1)]
    first, *rest = pairwise(bounds)
    others = [_pool(parts - 1).submit(kernel, *arguments, *bound) for bound in rest]
    try:
        kernel(*arguments, *first)
    finally:
        # Whatever happens here, no thread goes on writing to memory that its owner may give back.
        for other in others:
            other.exception()
    for other in others:
        other.result()


def _pool(size: int) -> ThreadPoolExecutor:
    if size not in _pools:
        _pools[size] = ThreadPoolExecutor(size, thread_name_prefix="vastmax")
    return _pools[size]
