"""Out of memory, said in one line: what was asked for, what there is, and which options to lower."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from typer.core import TyperCommand

from vastmax.validation import cut

PHRASES = ("out of memory", "not enough memory", "allocate memory", "ALLOC_FAILED")
TOO_LARGE = ("calculation overflowed", "multiplication overflow", "array is too big", "Maximum allowed dimension")
"""Sizes that no number of bytes can be said of."""

GROW = (
    *("num_samples", "k", "batch_size", "seq_len", "width", "widths", "hidden", "layers", "mixtures", "queue"),
    *("num_classes", "vocab_size", "rows", "features", "sample_sizes", "contexts", "seeds"),
)
"""The options that memory grows with, those first that it grows with most."""


class OutOfMemoryError(ValueError):
    """Options that take more memory than there is."""


class Command(TyperCommand):
    """A command that says which of its options to lower where there is too little memory for them."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (RuntimeError, ValueError, MemoryError, OSError) as error:
            if (reason := shortage(error)) is None:
                raise
            defaults = {str(option.name): option.default for option in self.params}
            raise OutOfMemoryError(f"{said_of(reason)}{advice(ctx.params, defaults)}") from error


def shortage(error: BaseException | None) -> BaseException | None:
    """Return the complaint of torch, NumPy or Python that there is no memory, behind an error or one made of it."""
    while error is not None and not is_out_of_memory(error):
        error = error.__cause__
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, NumPy, Python or the system could not have the memory that it asked for."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError | ValueError) and any(
        phrase in str(error) for phrase in PHRASES + TOO_LARGE
    )


def said_of(error: BaseException) -> str:
    """Say what was asked for and what there is, as far as an error and the system tell."""
    message = str(error)
    wanted = "more memory"
    if of_bytes := re.search(r"allocate (\d+) bytes", message):
        wanted = f"{int(of_bytes[1]) / 2**30:,.2f} GiB more"
    elif in_units := re.search(r"allocate ([\d.]+) ([KMGTPE]iB)", message):
        wanted = f"{in_units[1].rstrip('.')} {in_units[2]} more"
    elif any(phrase in message for phrase in TOO_LARGE):
        wanted = "more bytes than can be counted"
    if on_device := re.search(r"of which ([\d.]+ [KMGTPE]iB) is free", message):
        free: str | None = f"{on_device[1]} free on the device"
    else:
        free = None if (there := free_memory()) is None else f"{there / 2**30:,.2f} GiB free"
    return f"out of memory: expected to be given {wanted}" + ("" if free is None else f", got {free}")


def free_memory() -> int | None:
    """The bytes that the system has left for this process; None where it does not say."""
    if sys.platform != "linux":
        return None
    import resource

    def kilobytes(file: str, name: str) -> int:
        return int(re.search(rf"{name}:\s+(\d+) kB", Path(file).read_text(encoding="ascii"))[1])  # type: ignore[index]

    free = 1024 * kilobytes("/proc/meminfo", "MemAvailable")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return free
    return min(free, max(0, limit - 1024 * kilobytes("/proc/self/status", "VmSize")))


def advice(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Name the options to lower, those first that were raised above their defaults."""
    options = [name for name in GROW if given.get(name) is not None]
    options.sort(key=lambda name: not is_raised(given[name], defaults[name]))
    said = [f"--{name.replace('_', '-')} {cut(str(given[name]))}" for name in options[:5]]
    return f"; lower {', '.join(said[:-1])}{' or ' if said[1:] else ''}{said[-1]}" if said else ""


def is_raised(value: Any, default: Any) -> bool:
    """Whether an option is above its default; one that has none, or several numbers, whether it is another."""
    if isinstance(value, int | float) and isinstance(default, int | float):
        return value > default
    return bool(value != default)
