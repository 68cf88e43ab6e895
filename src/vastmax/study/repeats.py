"""Measure under several names, keep what is done, and say a mean with its spread."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from vastmax.tasks.files import RESULTS, check_folder, write_json
from vastmax.validation import check_choice

DONE = "result.json"


def check_begun(folder: Path, known: Iterable[str], *, resume: bool) -> None:
    """Raise ValueError if a folder holds a comparison that is not to be gone on with, or none that is."""
    check_folder(folder)
    begun = (folder / RESULTS).exists() or any((folder / name / DONE).exists() for name in known)
    if begun and not resume:
        raise ValueError(
            f"out: {folder} holds a comparison already; add --resume to go on with it, or name another"
        )
    if resume and not begun:
        raise ValueError(f"resume: expected a comparison to go on with in {folder}, found none")


def check_distinct(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError unless `names` are some of the known ones, each once."""
    for name in names:
        check_choice(option, name, known)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"{option}: expected distinct names out of {', '.join(known)}, got {', '.join(names) or 'none'}"
        )


def kept(folder: Path, setting: dict[str, Any], measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return the result that a folder holds of the same setting, or measure it and keep it there.

    Args:
        folder: of this one result.
        setting: what the result follows from.
        measure: makes the result; it may write other files into the folder it is given.

    Raises:
        ValueError: a result of another setting, or a damaged one.
    """
    path = folder / DONE
    if path.exists():
        return read_kept(path, setting)
    folder.mkdir(parents=True, exist_ok=True)
    result = measure(folder)
    write_json(path, {"setting": setting, "result": result})
    return result


def read_kept(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Read a result if it follows from the same setting."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before, result = content["setting"], content["result"]
        different = [name for name in setting if before[name] != setting[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the result of a comparison in JSON, got something else") from error
    if different:
        raise ValueError(f"resume: {path.parent} was begun with another {', '.join(different)}")
    return dict(result)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: a step of these models is too small to be shared out, and slower if it is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def spread(values: Sequence[float | None], scale: float = 1.0, digits: int = 1) -> str:
    """Write a mean and the standard deviation over repeats; `inf` if one of them is None, which stands for it."""
    known = [scale * value for value in values if value is not None]
    if len(known) < len(values):
        return "inf"
    if len(known) == 1:
        return f"{known[0]:.{digits}f}"
    return f"{mean(known):.{digits}f}±{stdev(known):.{digits}f}"


def counted(count: int, what: str) -> str:
    """Write a number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
