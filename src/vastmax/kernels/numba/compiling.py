"""Numba's compiler as the kernels use it: cached on disk, without the interpreter's lock, the first cost shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from vastmax.kernels.choice import log

FAST = {"reassoc", "contract", "arcp", "nsz"}
"""Sums may be reordered, so that they use the processor's vectors; inf and nan keep their meaning."""

SHOWN_SECONDS = 0.5
"""A compilation that takes longer is logged."""

SOURCES = tuple(
    (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(Path(__file__).parent.glob("*.py"))
)
"""Size and time of change of every file here, any of which a kernel may have inlined."""

inlined = numba.njit(fastmath=FAST, error_model="numpy", forceinline=True)
"""Compile a function that kernels call in their loops."""


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of arrays on first use for each combination of dtypes, and log how long that took."""
    compiled = numba.njit(function, fastmath=FAST, error_model="numpy", nogil=True)
    kept = _keep_on_disk(compiled)
    shown = 0

    def call(*arguments: Any) -> Any:
        nonlocal shown
        start = time.perf_counter()
        result = compiled(*arguments)
        misses = sum(compiled.stats.cache_misses.values())
        if misses > shown:  # of two threads that waited for the compiler, one says so
            shown = misses
            seconds = time.perf_counter() - start
            if seconds > SHOWN_SECONDS:
                until = "kept for the next process" if kept else "for this process alone: see NUMBA_CACHE_DIR"
                log.warning("compiled %s in %.1f s, %s", function.__name__, seconds, until)
        return result

    return call


def _keep_on_disk(compiled: Any) -> bool:
    """Have what is compiled kept for the next process; return False where no folder can be written to."""
    try:
        compiled.enable_caching()
    except RuntimeError:  # a package installed read-only, used by who has no home
        return False
    # Numba looks for changes in the kernel's own file alone, and would go on with what it once inlined.
    compiled._cache._cache_file._source_stamp = SOURCES
    return True
