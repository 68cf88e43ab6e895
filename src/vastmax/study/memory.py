"""The most memory that tensors held at once during a call."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
