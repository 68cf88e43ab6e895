"""Labelled text as people keep it: CLINC150's JSON, lines of text<TAB>label, or a folder of such files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vastmax.data.text import SPLIT_WORDS, read_text
from vastmax.validation import shown

Rows = list[tuple[str, str]]
PARTS = ("train", "valid", "test")
SUFFIXES = (".tsv", ".txt")


def read_labelled_text(path: Path) -> dict[str, Rows]:
    """Read rows of (text, label) by the part they belong to; one part named `all` if nothing says which.

    - *A `.json` file*: `{"train": [[text, label], ...], "val": ..., "test": ...}`, as CLINC150's; other parts,
      such as its out-of-scope ones, are left alone.
    - *Any other file*: UTF-8 lines of a text, a tab and its label.
    - *A folder*: such files named train, valid (val, validation, dev) and test, with suffix .tsv or .txt.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: a file that is empty, not UTF-8 or malformed, with the line; a missing part.
    """
    if not os.path.exists(path):  # and a name that is too long for one does not
        raise FileNotFoundError(f"{shown(path)}: no such file or folder; expected labelled text to read")
    if path.is_dir():
        return {part: read_lines(file) for part, file in files_of(path).items()}
    return read_json(path) if path.suffix == ".json" else {"all": read_lines(path)}


def files_of(folder: Path) -> dict[str, Path]:
    """Find the file of each part in a folder, by name."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        part = SPLIT_WORDS.get(file.stem.lower())
        if part is None or file.suffix not in SUFFIXES or not file.is_file():
            continue
        if part in found:
            names = " and ".join(shown(Path(path.name)) for path in (found[part], file))
            raise ValueError(f"{shown(folder)}: expected one file for {part}, got {names}")
        found[part] = file
    if missing := [part for part in PARTS if part not in found]:
        raise ValueError(
            f"{shown(folder)}: expected files named train, valid and test, with suffix .tsv or .txt, found none "
            f"for {' and '.join(missing)}"
        )
    return found


def read_lines(path: Path) -> Rows:
    """Read lines of a text, a tab and its label; blank lines are passed over."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        text, _, label = (piece.strip() for piece in line.partition("\t"))
        if not text or not label or "\t" in label:
            raise ValueError(f"{shown(path)}: line {number}: expected a text, a tab and a label, got {line[:60]!r}")
        rows.append((text, label))
    if not rows:
        raise ValueError(f"{shown(path)}: expected lines of a text, a tab and a label, got an empty file")
    return rows


def read_json(path: Path) -> dict[str, Rows]:
    """Read the parts of a file in CLINC150's format."""
    text = read_text(path)
    if not text.strip():
        raise ValueError(f"{shown(path)}: expected labelled text in JSON, got an empty file")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{shown(path)}: line {error.lineno}: expected JSON, got a file that is not: {error.msg}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{shown(path)}: expected an object with train, val and test, got {type(content).__name__}"
        )
    parts: dict[str, Rows] = {}
    for key, value in content.items():
        if (part := SPLIT_WORDS.get(key)) is not None:
            if part in parts:
                raise ValueError(f"{shown(path)}: expected one list for {part}, got {key} beside another")
            parts[part] = check_rows(path, key, value)
    if missing := [part for part in PARTS if part not in parts]:
        raise ValueError(
            f"{shown(path)}: expected lists named train, val and test, found none for {' and '.join(missing)}"
        )
    return parts


def check_rows(path: Path, key: str, value: Any) -> Rows:
    """Return one part of a JSON file if it is a list of [text, label]."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{shown(path)}: {key}: expected a list of [text, label], got {str(value)[:60]}")
    rows = []
    for index, row in enumerate(value):
        pair = isinstance(row, list) and len(row) == 2 and all(isinstance(piece, str) for piece in row)
        if not pair or not all(piece.strip() for piece in row):
            raise ValueError(f"{shown(path)}: {key}[{index}]: expected [text, label], got {str(row)[:60]}")
        rows.append((row[0].strip(), row[1].strip()))
    return rows
