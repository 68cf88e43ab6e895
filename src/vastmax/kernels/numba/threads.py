"""A loop over rows cut into one part per thread.

Numba's own parallel loops end a process that forked, or may not be entered by two threads at a time. Kernels let
go of the interpreter's lock, so the threads that torch has work for them, too: after an operator they spin for some
milliseconds in wait of the next, and others would share the processor with them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

_pools: dict[int, ThreadPoolExecutor] = {}
_OutlinedBody = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _torch_openmp() -> ctypes.CDLL | None:
    """Return the OpenMP runtime that came with torch and whose threads it uses, if it is GNU's."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        library = ctypes.CDLL(str(path))
        library.GOMP_parallel.argtypes = (_OutlinedBody, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        library.GOMP_parallel.restype = None
        return library
    return None


_openmp = _torch_openmp()


def _after_fork() -> None:
    """Forget the threads of the parent, which a child does not have."""
    global _openmp
    _openmp = None
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def in_parts(kernel: Callable[..., Any], count: int, *arguments: Any, at_least: int = 1) -> None:
    """Call `kernel(*arguments, start, stop)` for parts of `range(count)`, as many at a time as torch has threads.

    Args:
        kernel: works on the rows from `start` to `stop` alone.
        count: rows.
        *arguments: of the kernel, shared by the parts.
        at_least: rows that are worth a thread.
    """
    parts = max(1, min(torch.get_num_threads(), count // max(at_least, 1)))
    bounds = list(pairwise(count * part // parts for part in range(parts + 1)))
    if parts == 1:
        kernel(*arguments, 0, count)
    elif _openmp is not None:
        _in_team(_openmp, kernel, bounds, arguments)
    else:
        _in_pool(kernel, bounds, arguments)


def _in_team(
    openmp: ctypes.CDLL, kernel: Callable[..., Any], bounds: list[tuple[int, int]], arguments: tuple[Any, ...]
) -> None:
    """Have the members of a team take the parts, one after the other while there are any."""
    left = iter(bounds)  # its next is one step under the interpreter's lock
    errors: list[BaseException] = []

    def body(_: Any) -> None:
        try:
            for bound in left:
                kernel(*arguments, *bound)
        except BaseException as error:
            errors.append(error)

    openmp.GOMP_parallel(_OutlinedBody(body), None, len(bounds), 0)
    if errors:
        raise errors[0]


def _in_pool(kernel: Callable[..., Any], bounds: list[tuple[int, int]], arguments: tuple[Any, ...]) -> None:
    first, *rest = bounds
    others = [_pool(len(rest)).submit(kernel, *arguments, *bound) for bound in rest]
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
