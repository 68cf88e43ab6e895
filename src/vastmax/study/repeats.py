"""Measure under several names, keep what is done, and say a mean with its spread."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from vastmax.study.surroundings import surroundings
from vastmax.tasks.files import check_folder, check_free, write_json
from vastmax.validation import shown

SETTING = "setting.json"
DONE = "result.json"


def has_begun(folder: Path) -> bool:
    """Whether a folder holds a comparison, done or not."""
    return (folder / SETTING).exists()


def check_begun(folder: Path, *, resume: bool) -> None:
    """Raise ValueError if a folder holds a comparison that is not to be gone on with, or none that is."""
    check_folder(folder)
    begun = has_begun(folder)
    if begun and not resume:
        raise ValueError(
            f"out: {shown(folder)} holds a comparison already; add --resume to go on with it, or name another"
        )
    if resume and not begun:
        raise ValueError(f"resume: expected a comparison to go on with in {shown(folder)}, found none")
    if not begun:
        check_free(folder)


def begin(folder: Path, setting: dict[str, Any]) -> None:
    """Write down what a comparison follows from, before any of it is done; one that goes on has to be the same.

    Raises:
        ValueError: a folder that was begun with another setting, or with one that is damaged.
    """
    path = folder / SETTING
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{shown(path)}: expected the setting of a comparison in JSON, got something else; begin in "
                "another folder"
            ) from error
        check_same(folder, before, setting)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, setting)


def check_same(folder: Path, before: dict[str, Any], setting: dict[str, Any]) -> None:
    """Raise ValueError naming what differs between two settings."""
    if different := [name for name in setting if name not in before or before[name] != setting[name]]:
        raise ValueError(f"resume: {shown(folder)} was begun with another {', '.join(different)}")


def with_done(
    folder: Path, names: Sequence[str], known: Iterable[str], say: Callable[[str], None]
) -> tuple[str, ...]:
    """Return, in the order of all known names, those asked for and those whose results the folder holds."""
    found = tuple(name for name in known if name in names or (folder / name / DONE).exists())
    if beside := [name for name in found if name not in names]:
        say(f"{folder} has results of {', '.join(beside)} too: they stay in the comparison")
    return found


def kept(folder: Path, setting: dict[str, Any], measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return the result that a folder holds of the same setting, or measure it and keep it there.

    With it goes the version and the machine that made it, which need not be those that report it.

    Args:
        folder: of this one result.
        setting: what the result follows from.
        measure: makes the result; it may write other files into the folder it is given.

    Raises:
        ValueError: a result of another setting, or a damaged one, which the message says to delete.
    """
    path = folder / DONE
    if path.exists():
        return read_kept(path, setting)
    folder.mkdir(parents=True, exist_ok=True)
    result = {**measure(folder), **surroundings()}
    write_json(path, {"setting": setting, "result": result})
    return result


def read_kept(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Read a result if it follows from the same setting."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before, result = dict(content["setting"]), dict(content["result"])
        if not result["seeds"] or not surroundings().keys() <= result.keys():
            raise KeyError("seeds, or what they hold for")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{shown(path)}: expected the result of a comparison in JSON, got something else; delete the file, and "
            "--resume will make it anew"
        ) from error
    check_same(path.parent, before, setting)
    return result


def surroundings_of(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Say which version and machine made results: each entry once if they agree on it, or all that there were."""
    machines = [result["machine"] for result in results]
    return {
        "vastmax": together([result["vastmax"] for result in results]),
        "machine": {name: together([machine.get(name) for machine in machines]) for name in machines[0]},
    }


def together(values: Sequence[Any]) -> Any:
    """Return what all values are, or the different ones with `and` between."""
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else " and ".join(map(str, different))


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
