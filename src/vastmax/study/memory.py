"""The most memory that a call took: what tensors held at once, and what the process had of the system."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Return the bytes of tensors that `call` held at its worst moment, beyond those that were there before.

    On a CPU these are torch's own allocations, as its profiler sees them: exact and repeatable, without what a
    matrix library keeps for itself. On a CUDA device they are those of the caching allocator.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler announces itself on stderr
    with no_collection(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    assert profiled.profiler is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def resident_peak(call: Callable[[], object]) -> int | None:
    """Return the bytes that the process grew by until the worst moment of `call`; None where it is not Linux's.

    Beside the tensors these are what libraries keep for themselves, and the holes in the C library's heap, which
    are no one's and yet not the system's. Those that were there before are given back first, or they would be
    filled unseen.
    """
    if sys.platform != "linux":
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; another library has other holes
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """Return a line of the kernel's account of this process, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return 1024 * int(lines[name].removesuffix("kB"))


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect what is garbage now, and nothing inside: tensors that were there before would count as given back."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
