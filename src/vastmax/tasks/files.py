"""Files of results: written whole or not at all, and never over others."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vastmax.validation import shown

RESULTS = "results.json"


def check_folder(path: Path) -> None:
    """Raise ValueError if a file is in the way of a folder of that name, OSError if there can be no such name."""
    for place in (path, *path.parents):
        try:
            mode = place.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(mode):
            raise ValueError(f"out: expected the name of a folder, got {shown(path)}, and {shown(place)} is a file")
        return


def check_free(folder: Path) -> None:
    """Raise ValueError if results cannot be put in a folder of that name, or are there already."""
    check_folder(folder)
    if (folder / RESULTS).exists():
        raise ValueError(f"out: {shown(folder)} holds results already; name another folder")


def check_unread(config: type[Any], **given: object) -> None:
    """Raise ValueError if options say how to read data, and there are none to read."""
    for name, value in given.items():
        if value != getattr(config, name):
            raise ValueError(f"{name}: expected beside --data, got {shown(value)} without it")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a draft to write, which takes the file's name once it is done."""
    draft = path.with_name(f"{path.name}.draft")
    yield draft
    draft.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    with whole(path) as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
